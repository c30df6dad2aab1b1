/* Calls the whole interface; compiled as C11 and as C++17. Prints a hash of all results, which tests/c_api.rs compares
 * with that of the Rust functions. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batchnorm.h"

#define N 3
#define C 37
#define D 1
#define H 9
#define W 11
#define LEN (N * C * D * H * W)

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      char message[200];                                                             \
      batchnorm_last_message(message, sizeof message);                               \
      fprintf(stderr, "line %d: %s (last message: %s)\n", __LINE__, #condition, message); \
      exit(1);                                                                       \
    }                                                                                \
  } while (0)

#ifdef __cplusplus
#define ASSERT static_assert
#else
#define ASSERT _Static_assert
#endif

/* What programs that are compiled already rely on. */
ASSERT(sizeof(batchnorm_state) == 32 && offsetof(batchnorm_state, mean_low) == 16, "batchnorm_state");
ASSERT(sizeof(batchnorm_problem) == 8 + 5 * sizeof(size_t) && offsetof(batchnorm_problem, spatial) == 8 + 2 * sizeof(size_t),
       "batchnorm_problem");
ASSERT(sizeof(batchnorm_update) == 16 && offsetof(batchnorm_update, factor) == 8, "batchnorm_update");
ASSERT(BATCHNORM_STATUS_OK == 0 && BATCHNORM_STATUS_INTERNAL == 12, "batchnorm_status");

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t len) {
  const unsigned char *at = (const unsigned char *)bytes;
  size_t i;
  for (i = 0; i < len; i++) hash = (hash ^ at[i]) * 0x100000001b3u;
  return hash;
}

#define T float
#define NAME(name) batchnorm_##name##_f32
#define FUNCTION(name) name##_f32
#include "element.h"
#undef T
#undef NAME
#undef FUNCTION

#define T double
#define NAME(name) batchnorm_##name##_f64
#define FUNCTION(name) name##_f64
#include "element.h"

/* Large enough for the pool. */
static uint64_t large(uint32_t serial, uint64_t hash) {
  enum { CHANNELS = 16, ELEMENTS = 8 * CHANNELS * 48 * 48 };
  const batchnorm_problem problem = {BATCHNORM_NCHW, serial, 8, CHANNELS, {1, 48, 48}};
  static float x[ELEMENTS], dy[ELEMENTS], y[ELEMENTS], dx[ELEMENTS];
  float dgamma[CHANNELS];
  batchnorm_state states[CHANNELS];
  fill_f32(x, ELEMENTS, 5);
  fill_f32(dy, ELEMENTS, 77);
  CHECK(batchnorm_forward_training_f32(&problem, x, NULL, NULL, 1e-5, y, states) == BATCHNORM_STATUS_OK);
  CHECK(batchnorm_backward_f32(&problem, x, dy, states, NULL, 1e-5, dx, dgamma, NULL, NULL, NULL) == BATCHNORM_STATUS_OK);
  hash = hash_bytes(hash_bytes(hash, y, sizeof y), states, sizeof states);
  return hash_bytes(hash_bytes(hash, dx, sizeof dx), dgamma, sizeof dgamma);
}

/* The program's threads are this many, as far as its system tells. */
static int threads_are(int expected) {
  FILE *status = fopen("/proc/self/status", "r");
  char line[200];
  int threads = expected;
  if (status == NULL) return 1;
  while (fgets(line, sizeof line, status) != NULL) sscanf(line, "Threads: %d", &threads);
  fclose(status);
  return threads == expected;
}

int main(void) {
  uint64_t hash = 0xcbf29ce484222325u, serially;
  uint32_t layout, serial;
  float two[2] = {0.0f, 0.0f};
  batchnorm_state state;
  batchnorm_problem problem = {BATCHNORM_NCHW, 0, 1, 1, {1, 1, 2}};
  char message[200];

  CHECK(strlen(batchnorm_version()) >= 5);
  CHECK(batchnorm_active_level() >= BATCHNORM_PORTABLE);
  serially = large(1, hash);
  CHECK(threads_are(1));
  CHECK(batchnorm_set_threads(3) == BATCHNORM_STATUS_OK);
  CHECK(threads_are(4));
  CHECK(batchnorm_set_threads(3) == BATCHNORM_STATUS_THREADS);
  hash = large(0, hash);
  CHECK(hash == serially);
  for (layout = BATCHNORM_NCHW; layout <= BATCHNORM_NHWC; layout++) {
    for (serial = 0; serial <= 1; serial++) {
      hash = all_f32(layout, serial, hash);
      hash = all_f64(layout, serial, hash);
    }
  }
  CHECK(batchnorm_force_level(BATCHNORM_PORTABLE) == BATCHNORM_STATUS_OK);
  CHECK(batchnorm_active_level() == BATCHNORM_PORTABLE);
  CHECK(batchnorm_force_level(0) == BATCHNORM_STATUS_OK);
  CHECK(batchnorm_force_level(77) == BATCHNORM_STATUS_UNKNOWN_VALUE);

  CHECK(batchnorm_statistics_f32(&problem, NULL, &state) == BATCHNORM_STATUS_NULL_POINTER);
  CHECK(batchnorm_last_message(message, sizeof message) == strlen(message) + 1);
  CHECK(strstr(message, "x is null") != NULL);
  CHECK(strcmp(batchnorm_status_message(BATCHNORM_STATUS_NULL_POINTER), "a pointer is null") == 0);
  problem.channels = 0;
  CHECK(batchnorm_statistics_f32(&problem, NULL, NULL) == BATCHNORM_STATUS_OK);
  problem.channels = 1;
  CHECK(batchnorm_forward_training_f32(&problem, two, NULL, NULL, -1.0, two, &state) == BATCHNORM_STATUS_EPSILON);

  printf("%016llx\n", (unsigned long long)hash);
  return 0;
}
