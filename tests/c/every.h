/* Every function for every element, on tensors of N, C, H, W (LEN elements): what the programs here share. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batchnorm.h"

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      char message[200];                                                             \
      batchnorm_last_message(message, sizeof message);                               \
      fprintf(stderr, "line %d: %s (last message: %s)\n", __LINE__, #condition, message); \
      exit(1);                                                                       \
    }                                                                                \
  } while (0)
#define OK(call) CHECK((call) == BATCHNORM_STATUS_OK)

/* The arguments of an operation, all 0 but the size. */
#define ARGS(name)                \
  batchnorm_##name##_args name;   \
  memset(&name, 0, sizeof name);  \
  name.size = sizeof name

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t len) {
  const unsigned char *at = (const unsigned char *)bytes;
  size_t i;
  for (i = 0; i < len; i++) hash = (hash ^ at[i]) * 0x100000001b3u;
  return hash;
}

/* Whose threads problems are for. */
static const batchnorm_threadpool *threadpool;

static batchnorm_problem problem_of(uint32_t element, uint32_t layout, size_t threads, size_t n, size_t c, size_t h,
                                    size_t w) {
  batchnorm_problem problem;
  memset(&problem, 0, sizeof problem);
  problem.size = sizeof problem;
  problem.element = element;
  problem.layout = layout;
  problem.batch = n;
  problem.channels = c;
  problem.spatial[0] = h;
  problem.spatial[1] = w;
  problem.threads = threads;
  problem.threadpool = threadpool;
  return problem;
}

#define T float
#define ELEMENT BATCHNORM_F32
#define FUNCTION(name) name##_f32
#include "element.h"
#undef T
#undef ELEMENT
#undef FUNCTION

#define T double
#define ELEMENT BATCHNORM_F64
#define FUNCTION(name) name##_f64
#include "element.h"

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
