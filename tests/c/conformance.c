/* Calls the whole interface; compiled as C11 and as C++17. Prints a hash of all results, which tests/ffi/c_api.rs
 * compares with that of the Rust functions. */

#define N 3
#define C 37
#define H 9
#define W 11
#define LEN (N * C * H * W)
#include "every.h"
#include "half.h"

#ifdef __cplusplus
#define ASSERT static_assert
#else
#define ASSERT _Static_assert
#endif

/* What programs that are compiled already rely on: where fields are, and that structs only grow. */
#define FOLLOWS(type, field, before) \
  ASSERT(offsetof(type, field) == offsetof(type, before) + sizeof(((type *)0)->before), #type "." #field)
FOLLOWS(batchnorm_problem, element, size);
FOLLOWS(batchnorm_problem, layout, element);
FOLLOWS(batchnorm_problem, batch, layout);
FOLLOWS(batchnorm_problem, channels, batch);
FOLLOWS(batchnorm_problem, spatial, channels);
FOLLOWS(batchnorm_problem, threads, spatial);
FOLLOWS(batchnorm_problem, threadpool, threads);
FOLLOWS(batchnorm_problem, y_element, threadpool);
ASSERT(sizeof(batchnorm_problem) >= offsetof(batchnorm_problem, y_element) + sizeof(uint64_t), "batchnorm_problem");
ASSERT(BATCHNORM_BF16 == 2 && BATCHNORM_F16 == 3 && BATCHNORM_Y_SAME == 0, "elements");
ASSERT(BATCHNORM_Y_F32 == 16 && BATCHNORM_Y_BF16 == 18 && BATCHNORM_Y_F16 == 19, "elements of y");
FOLLOWS(batchnorm_threadpool, context, size);
FOLLOWS(batchnorm_threadpool, run, threads);
FOLLOWS(batchnorm_threadpool, awake, inside);
FOLLOWS(batchnorm_training_args, x, size);
FOLLOWS(batchnorm_training_args, eps, beta);
FOLLOWS(batchnorm_training_args, states, y);
FOLLOWS(batchnorm_training_args, activation, states);
FOLLOWS(batchnorm_training_args, slope, activation);
FOLLOWS(batchnorm_training_args, residual, hi);
FOLLOWS(batchnorm_training_args, mask, residual);
FOLLOWS(batchnorm_training_args, first, mask);
FOLLOWS(batchnorm_training_args, gather, first);
FOLLOWS(batchnorm_statistics_args, first, states);
FOLLOWS(batchnorm_statistics_args, part_len, part);
FOLLOWS(batchnorm_inference_args, y, eps);
FOLLOWS(batchnorm_inference_args, activation, y);
FOLLOWS(batchnorm_inference_args, slope, activation);
FOLLOWS(batchnorm_inference_args, residual, hi);
FOLLOWS(batchnorm_inference_args, mask, residual);
FOLLOWS(batchnorm_inference_args, states, mask);
FOLLOWS(batchnorm_backward_args, states, dy);
FOLLOWS(batchnorm_backward_args, dvar, dmean);
FOLLOWS(batchnorm_backward_args, activation, dvar);
FOLLOWS(batchnorm_backward_args, slope, activation);
FOLLOWS(batchnorm_backward_args, beta, hi);
FOLLOWS(batchnorm_backward_args, mask, beta);
FOLLOWS(batchnorm_backward_args, dz, mask);
FOLLOWS(batchnorm_backward_args, first, dz);
FOLLOWS(batchnorm_backward_args, gather, first);
FOLLOWS(batchnorm_backward_args, part, gather);
FOLLOWS(batchnorm_backward_args, sums_len, sums);
FOLLOWS(batchnorm_update_running_args, factor, unbiased);
FOLLOWS(batchnorm_step_args, parameter, gradient);
FOLLOWS(batchnorm_renorm_args, states, size);
FOLLOWS(batchnorm_renorm_args, eps, beta);
FOLLOWS(batchnorm_renorm_args, d_max, r_max);
FOLLOWS(batchnorm_renorm_args, r, d_max);
FOLLOWS(batchnorm_renorm_args, renorm_beta, renorm_gamma);
FOLLOWS(batchnorm_fold_args, outer, size);
FOLLOWS(batchnorm_fold_args, groups, inner);
FOLLOWS(batchnorm_fold_args, mean, groups);
FOLLOWS(batchnorm_fold_args, eps, beta);
FOLLOWS(batchnorm_fold_args, bias, weight);
ASSERT(offsetof(batchnorm_state, mean_low) == 16 && offsetof(batchnorm_state, m2) == 24, "batchnorm_state");
ASSERT(BATCHNORM_STATUS_OK == 0 && BATCHNORM_STATUS_SIZE == 12 && BATCHNORM_STATUS_OUT_OF_MEMORY == 15 &&
       BATCHNORM_STATUS_ACTIVATION == 17 && BATCHNORM_STATUS_PART == 19 && BATCHNORM_STATUS_GATHER == 21 && BATCHNORM_STATUS_GROUPS == 22 &&
       BATCHNORM_STATUS_LIMIT == 23 && BATCHNORM_STATUS_WEIGHTS == 24, "batchnorm_status");

/* Large enough for the pool. */
static uint64_t large(size_t threads, uint64_t hash) {
  enum { CHANNELS = 16, ELEMENTS = 8 * CHANNELS * 48 * 48 };
  const batchnorm_problem problem = problem_of(BATCHNORM_F32, BATCHNORM_NCHW, threads, 8, CHANNELS, 48, 48);
  static float x[ELEMENTS], dy[ELEMENTS], y[ELEMENTS], dx[ELEMENTS];
  float dgamma[CHANNELS];
  batchnorm_state states[CHANNELS];
  ARGS(training);
  ARGS(backward);
  fill_f32(x, ELEMENTS, 5);
  fill_f32(dy, ELEMENTS, 77);
  training.x = x;
  training.eps = 1e-5;
  training.y = y;
  training.states = states;
  OK(batchnorm_training(&problem, &training));
  backward.x = x;
  backward.dy = dy;
  backward.states = states;
  backward.eps = 1e-5;
  backward.dx = dx;
  backward.dgamma = dgamma;
  OK(batchnorm_backward(&problem, &backward));
  hash = hash_bytes(hash_bytes(hash, y, sizeof y), states, sizeof states);
  return hash_bytes(hash_bytes(hash, dx, sizeof dx), dgamma, sizeof dgamma);
}

int main(void) {
  uint64_t hash = 0xcbf29ce484222325u, alone;
  uint32_t layout;
  size_t threads;
  float two[2] = {0.0f, 0.0f};
  batchnorm_state state;
  batchnorm_problem problem = problem_of(BATCHNORM_F32, BATCHNORM_NCHW, 0, 1, 1, 0, 2);
  char message[200];
  ARGS(statistics);
  ARGS(training);

  CHECK(strlen(batchnorm_version()) >= 5);
  CHECK(batchnorm_active_level() >= BATCHNORM_PORTABLE);
  alone = large(1, hash);
  CHECK(threads_are(1));
  CHECK(batchnorm_set_threads((size_t)-1) == BATCHNORM_STATUS_THREADS);
  OK(batchnorm_set_threads(3));
  CHECK(threads_are(4));
  CHECK(batchnorm_set_threads(3) == BATCHNORM_STATUS_THREADS);
  CHECK(large(2, hash) == alone);
  hash = large(0, hash);
  CHECK(hash == alone);
  for (layout = BATCHNORM_NCHW; layout <= BATCHNORM_NHWC; layout++) {
    for (threads = 0; threads <= 1; threads++) {
      hash = all_f32(layout, threads, hash);
      hash = all_f64(layout, threads, hash);
    }
  }
  halves();
  OK(batchnorm_force_level(BATCHNORM_PORTABLE));
  CHECK(batchnorm_active_level() == BATCHNORM_PORTABLE);
  OK(batchnorm_force_level(0));
  CHECK(batchnorm_force_level(77) == BATCHNORM_STATUS_UNKNOWN_VALUE);

  /* An axis of 0 is one that is not there: a mean of two elements. */
  two[1] = 3.0f;
  statistics.x = two;
  statistics.states = &state;
  OK(batchnorm_statistics(&problem, &statistics));
  CHECK(state.count == 2 && batchnorm_mean(&state) == 1.5);
  statistics.x = NULL;
  CHECK(batchnorm_statistics(&problem, &statistics) == BATCHNORM_STATUS_NULL_POINTER);
  CHECK(batchnorm_last_message(message, sizeof message) == strlen(message) + 1);
  CHECK(strstr(message, "x is null") != NULL);
  CHECK(strcmp(batchnorm_status_message(BATCHNORM_STATUS_NULL_POINTER), "a pointer is null") == 0);
  problem.channels = 0;
  statistics.states = NULL;
  OK(batchnorm_statistics(&problem, &statistics));
  problem.channels = 1;
  training.x = training.y = two;
  training.states = &state;
  training.eps = -1.0;
  CHECK(batchnorm_training(&problem, &training) == BATCHNORM_STATUS_EPSILON);
  training.size = 0;
  CHECK(batchnorm_training(&problem, &training) == BATCHNORM_STATUS_SIZE);
  problem.size = 0;
  CHECK(batchnorm_training(&problem, &training) == BATCHNORM_STATUS_SIZE);

  printf("%016llx\n", (unsigned long long)hash);
  return 0;
}
