/* A pool whose threads cannot be started (tests/ffi/c_api.rs asks for thousands): calls stay on their own thread. */

#define _XOPEN_SOURCE 700
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "batchnorm.h"

#define CHANNELS 16
#define LEN (8 * CHANNELS * 48 * 48)

static float x[LEN], y[LEN], expected[LEN];

int main(void) {
  batchnorm_state states[CHANNELS];
  batchnorm_problem problem = {.size = sizeof problem, .batch = 8, .channels = CHANNELS, .spatial = {48, 48}, .threads = 1};
  batchnorm_training_args args = {.size = sizeof args, .x = x, .eps = 1e-5, .y = expected, .states = states};
  struct rlimit limit = {(rlim_t)1 << 30, (rlim_t)1 << 30}; /* their stacks do not fit */
  size_t i;
  int call;
  for (i = 0; i < LEN; i++) x[i] = (float)(i * 2654435761u % 1000);
  if (setrlimit(RLIMIT_AS, &limit) != 0) return 1;
  if (batchnorm_training(&problem, &args) != BATCHNORM_STATUS_OK) return 2;
  problem.threads = 0;
  args.y = y;
  for (call = 0; call < 2; call++) {
    memset(y, 0, sizeof y);
    if (batchnorm_training(&problem, &args) != BATCHNORM_STATUS_OK || memcmp(y, expected, sizeof y) != 0) return 3;
  }
  if (batchnorm_set_threads(2) != BATCHNORM_STATUS_THREADS) return 4;
  puts("on the calling thread");
  return 0;
}
