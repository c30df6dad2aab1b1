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

int main(void) {
  uint64_t hash = 0xcbf29ce484222325u;
  uint32_t layout, serial;
  float two[2] = {0.0f, 0.0f};
  batchnorm_state state;
  batchnorm_problem problem = {BATCHNORM_NCHW, 0, 1, 1, {1, 1, 2}};
  char message[200];

  CHECK(strlen(batchnorm_version()) >= 5);
  CHECK(batchnorm_active_level() >= BATCHNORM_PORTABLE);
  CHECK(batchnorm_set_threads(3) == BATCHNORM_STATUS_OK);
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
