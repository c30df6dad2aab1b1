/* A batch in three parts, one of them empty, in processes that tell each other bytes through shared memory: each gets the bits of the
 * whole, by gather and by hand, and an error in one is an error in all. */

#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define N 20
#define C 37
#define H 9
#define W 11
#define LEN (N * C * H * W)
#include "every.h"

enum { PROCESSES = 3, MOST = 1 << 16, SAMPLE = C * H * W };

/* What processes share. */
static struct shared {
  pthread_barrier_t barrier;
  size_t lens[PROCESSES];
  unsigned char bytes[PROCESSES][MOST];
} *shared;

static int process;
static int calls;

static int32_t gather(void *context, const void *bytes, size_t len, batchnorm_collect collect, void *argument) {
  int i;
  CHECK(context == &calls && len <= MOST);
  calls++;
  memcpy(shared->bytes[process], bytes, len);
  shared->lens[process] = len;
  pthread_barrier_wait(&shared->barrier);
  /* In another order in each. */
  for (i = 0; i < PROCESSES; i++) {
    const int other = (i + process) % PROCESSES;
    collect(argument, shared->bytes[other], shared->lens[other]);
  }
  pthread_barrier_wait(&shared->barrier);
  return 0;
}

static float x[LEN], z[LEN], dy[LEN], y[LEN], dx[LEN], dz[LEN], gamma_[C], dgamma[C], dbeta[C];
static float part_y[LEN], part_dx[LEN], part_dz[LEN], part_dgamma[C], part_dbeta[C];
static batchnorm_state states[C], part_states[C];
static uint64_t mask[LEN / 64 + 1], part_mask[LEN / 64 + 1];

static batchnorm_training_args training_of(size_t first, float *to, batchnorm_state *out, uint64_t *bits) {
  ARGS(training);
  training.x = x + first * SAMPLE;
  training.residual = z + first * SAMPLE;
  training.gamma = gamma_;
  training.eps = 1e-5;
  training.activation = BATCHNORM_RELU;
  training.y = to;
  training.states = out;
  training.mask = bits;
  training.first = first;
  return training;
}

/* Inference by the part's states, which are those of the whole batch. */
static void infer(const batchnorm_problem *problem, size_t first) {
  ARGS(inference);
  inference.x = x + first * SAMPLE;
  inference.residual = z + first * SAMPLE;
  inference.gamma = gamma_;
  inference.eps = 1e-5;
  inference.activation = BATCHNORM_RELU;
  inference.y = part_y;
  inference.mask = part_mask;
  inference.states = part_states;
  OK(batchnorm_inference(problem, &inference));
}

static batchnorm_backward_args backward_of(size_t first, const batchnorm_state *of, const uint64_t *bits) {
  ARGS(backward);
  backward.x = x + first * SAMPLE;
  backward.dy = dy + first * SAMPLE;
  backward.states = of;
  backward.gamma = gamma_;
  backward.eps = 1e-5;
  backward.activation = BATCHNORM_RELU;
  backward.mask = bits;
  backward.first = first;
  return backward;
}

static void gradients_to(batchnorm_backward_args *backward, float *to, float *to_dz, float *to_dgamma, float *to_dbeta) {
  backward->dx = to;
  backward->dz = to_dz;
  backward->dgamma = to_dgamma;
  backward->dbeta = to_dbeta;
}

/* That a part has what the whole has. */
static void same(size_t first, size_t batch) {
  const size_t len = batch * SAMPLE * sizeof(float);
  CHECK(memcmp(part_y, y + first * SAMPLE, len) == 0);
  CHECK(memcmp(part_dx, dx + first * SAMPLE, len) == 0);
  CHECK(memcmp(part_dz, dz + first * SAMPLE, len) == 0);
  CHECK(memcmp(part_states, states, sizeof states) == 0);
  CHECK(memcmp(part_dgamma, dgamma, sizeof dgamma) == 0);
  CHECK(memcmp(part_dbeta, dbeta, sizeof dbeta) == 0);
}

/* Samples with weights, split where no block ends: those of one call, and of copies where weights are whole numbers. */
static void weighted(void) {
  enum { CUT = 5 };
  double weights[N];
  static float twice[2 * SAMPLE], ones[SAMPLE], copies_y[2 * SAMPLE];
  unsigned char bytes[2][MOST], joined[2 * MOST];
  const void *parts[2];
  size_t lens[2], len = sizeof joined;
  const batchnorm_problem whole = problem_of(BATCHNORM_F32, BATCHNORM_NCHW, 1, N, C, H, W);
  batchnorm_training_args training = training_of(0, part_y, states, part_mask);
  batchnorm_backward_args backward = backward_of(0, states, part_mask);
  int i;
  for (i = 0; i < N; i++) weights[i] = i % 4 == 1 ? 0 : 0.25 + i;
  training.weights = weights;
  OK(batchnorm_training(&whole, &training));
  for (i = 0; i < 2; i++) {
    const size_t first = i == 0 ? 0 : CUT;
    const batchnorm_problem problem = problem_of(BATCHNORM_F32, BATCHNORM_NCHW, 1, i == 0 ? CUT : N - CUT, C, H, W);
    ARGS(statistics);
    statistics.x = x + first * SAMPLE;
    statistics.weights = weights + first;
    statistics.first = first;
    statistics.part = bytes[i];
    parts[i] = bytes[i];
    lens[i] = batchnorm_part_len(&problem);
    CHECK(lens[i] <= MOST);
    statistics.part_len = &lens[i];
    OK(batchnorm_statistics(&problem, &statistics));
  }
  OK(batchnorm_join(2, parts, lens, joined, &len));
  OK(batchnorm_part_states(joined, len, C, part_states));
  CHECK(memcmp(part_states, states, sizeof states) == 0);
  gradients_to(&backward, part_dx, part_dz, part_dgamma, part_dbeta);
  CHECK(batchnorm_backward(&whole, &backward) == BATCHNORM_STATUS_COUNT);
  backward.weights = weights;
  OK(batchnorm_backward(&whole, &backward));

  /* One sample of weight 2 is two of it. */
  {
    const batchnorm_problem one = problem_of(BATCHNORM_F32, BATCHNORM_NCHW, 1, 1, C, H, W);
    const batchnorm_problem two = problem_of(BATCHNORM_F32, BATCHNORM_NCHW, 1, 2, C, H, W);
    const double weight = 2;
    memcpy(twice, x, sizeof ones);
    memcpy(twice + SAMPLE, x, sizeof ones);
    training = training_of(0, copies_y, states, NULL);
    training.residual = NULL;
    training.x = twice;
    OK(batchnorm_training(&two, &training));
    training.x = x;
    training.y = ones;
    training.states = part_states;
    training.weights = &weight;
    OK(batchnorm_training(&one, &training));
    for (i = 0; i < C; i++) {
      CHECK(part_states[i].count == states[i].count && part_states[i].mean == states[i].mean);
    }
    for (i = 0; i < SAMPLE; i++) CHECK(fabsf(ones[i] - copies_y[i]) <= 1e-6f * fabsf(ones[i]));
  }

  /* What is none is refused before anything is written. */
  training = training_of(0, part_y, part_states, NULL);
  training.weights = weights;
  memcpy(part_states, states, sizeof states);
  weights[3] = -1;
  CHECK(batchnorm_training(&whole, &training) == BATCHNORM_STATUS_WEIGHTS);
  backward.weights = weights;
  CHECK(batchnorm_backward(&whole, &backward) == BATCHNORM_STATUS_WEIGHTS);
  memset(weights, 0, sizeof weights);
  CHECK(batchnorm_training(&whole, &training) == BATCHNORM_STATUS_WEIGHTS);
  training.weights = (const double *)(const void *)part_y;
  CHECK(batchnorm_training(&whole, &training) == BATCHNORM_STATUS_OVERLAP);
  CHECK(memcmp(part_states, states, sizeof states) == 0);
}

static int child(size_t first, size_t batch) {
  const batchnorm_problem problem = problem_of(BATCHNORM_F32, BATCHNORM_NCHW, 1, batch, C, H, W);
  batchnorm_gather all;
  batchnorm_training_args training;
  batchnorm_backward_args backward;
  memset(&all, 0, sizeof all);
  all.size = sizeof all;
  all.context = &calls;
  all.gather = gather;

  training = training_of(first, part_y, part_states, part_mask);
  training.gather = &all;
  OK(batchnorm_training(&problem, &training));
  backward = backward_of(first, part_states, part_mask);
  gradients_to(&backward, part_dx, part_dz, part_dgamma, part_dbeta);
  backward.gather = &all;
  OK(batchnorm_backward(&problem, &backward));
  CHECK(calls == 2);
  same(first, batch);

  /* One has an error in its arguments, one a problem that is none; then one another number of channels. */
  training = training_of(first, part_y, part_states, part_mask);
  training.gather = &all;
  training.eps = process == 1 ? -1 : 1e-5;
  CHECK(batchnorm_training(&problem, &training) ==
        (process == 1 ? BATCHNORM_STATUS_EPSILON : BATCHNORM_STATUS_GATHER));
  backward.x = process == 0 ? NULL : backward.x;
  CHECK(batchnorm_backward(&problem, &backward) ==
        (process == 0 ? BATCHNORM_STATUS_NULL_POINTER : BATCHNORM_STATUS_GATHER));
  {
    const batchnorm_problem other =
        problem_of(BATCHNORM_F32, process == 2 ? 7 : BATCHNORM_NCHW, 1, batch, C, H, W);
    training.eps = 1e-5;
    CHECK(batchnorm_training(&other, &training) ==
          (process == 2 ? BATCHNORM_STATUS_UNKNOWN_VALUE : BATCHNORM_STATUS_GATHER));
  }
  {
    const batchnorm_problem other = problem_of(BATCHNORM_F32, BATCHNORM_NCHW, 1, batch, process == 2 ? C - 1 : C, H, W);
    CHECK(batchnorm_training(&other, &training) == BATCHNORM_STATUS_PART);
  }
  CHECK(calls == 6);
  return 0;
}

int main(void) {
  const size_t firsts[PROCESSES + 1] = {0, 16, 16, N};
  const batchnorm_problem whole = problem_of(BATCHNORM_F32, BATCHNORM_NCHW, 1, N, C, H, W);
  const batchnorm_training_args training = training_of(0, y, states, mask);
  batchnorm_backward_args backward = backward_of(0, states, mask);
  pthread_barrierattr_t attributes;
  int i;
  /* Those of the header that are for others. */
  (void)all_f32;
  (void)all_f64;
  (void)threads_are;
  fill_f32(x, LEN, 0);
  fill_f32(z, LEN, 1000003);
  fill_f32(dy, LEN, 2000003);
  fill_f32(gamma_, C, 11);
  OK(batchnorm_training(&whole, &training));
  gradients_to(&backward, dx, dz, dgamma, dbeta);
  OK(batchnorm_backward(&whole, &backward));
  CHECK(batchnorm_granularity(&whole) == 16 && batchnorm_granularity(NULL) == 0);

  /* By hand, in one process: sums of every part, joined. */
  {
    unsigned char bytes[PROCESSES][MOST], sums[PROCESSES][MOST];
    static unsigned char joined[PROCESSES * MOST], joined_sums[PROCESSES * MOST];
    const void *parts[PROCESSES], *parts_of_sums[PROCESSES];
    size_t lens[PROCESSES], lens_of_sums[PROCESSES], len = sizeof joined, len_of_sums = sizeof joined_sums;
    for (i = 0; i < PROCESSES; i++) {
      const batchnorm_problem problem =
          problem_of(BATCHNORM_F32, BATCHNORM_NCHW, 1, firsts[i + 1] - firsts[i], C, H, W);
      ARGS(statistics);
      statistics.x = x + firsts[i] * SAMPLE;
      statistics.first = firsts[i];
      statistics.part = bytes[i];
      parts[PROCESSES - 1 - i] = bytes[i];
      lens[PROCESSES - 1 - i] = batchnorm_part_len(&problem);
      CHECK(lens[PROCESSES - 1 - i] > 0 && lens[PROCESSES - 1 - i] <= MOST);
      statistics.part_len = &lens[PROCESSES - 1 - i];
      OK(batchnorm_statistics(&problem, &statistics));
    }
    OK(batchnorm_join(PROCESSES, parts, lens, joined, &len));
    OK(batchnorm_part_states(joined, len, C, part_states));
    for (i = 0; i < PROCESSES; i++) {
      const batchnorm_problem problem =
          problem_of(BATCHNORM_F32, BATCHNORM_NCHW, 1, firsts[i + 1] - firsts[i], C, H, W);
      batchnorm_backward_args part;
      infer(&problem, firsts[i]);
      part = backward_of(firsts[i], part_states, part_mask);
      part.part = sums[i];
      parts_of_sums[i] = sums[i];
      lens_of_sums[i] = batchnorm_part_len(&problem);
      part.part_len = &lens_of_sums[i];
      OK(batchnorm_backward(&problem, &part));
    }
    OK(batchnorm_join(PROCESSES, parts_of_sums, lens_of_sums, joined_sums, &len_of_sums));
    for (i = 0; i < PROCESSES; i++) {
      const size_t batch = firsts[i + 1] - firsts[i];
      const batchnorm_problem problem = problem_of(BATCHNORM_F32, BATCHNORM_NCHW, 1, batch, C, H, W);
      batchnorm_backward_args part;
      infer(&problem, firsts[i]);
      part = backward_of(firsts[i], part_states, part_mask);
      gradients_to(&part, part_dx, part_dz, part_dgamma, part_dbeta);
      part.sums = joined_sums;
      part.sums_len = len_of_sums;
      OK(batchnorm_backward(&problem, &part));
      same(firsts[i], batch);
      /* What does not go together. */
      part.part = bytes[0];
      part.part_len = &lens[0];
      CHECK(batchnorm_backward(&problem, &part) == BATCHNORM_STATUS_EXCLUSIVE);
      part.part = NULL;
      part.sums = NULL;
      CHECK(batchnorm_backward(&problem, &part) == BATCHNORM_STATUS_NULL_POINTER);
      part.sums = joined_sums;
      part.sums_len--;
      CHECK(batchnorm_backward(&problem, &part) == BATCHNORM_STATUS_BYTES);
    }
    joined[len / 2] ^= 1;
    CHECK(batchnorm_part_states(joined, len, C, part_states) == BATCHNORM_STATUS_BYTES);
    joined[len / 2] ^= 1;
    CHECK(batchnorm_part_states(joined, len, C - 1, part_states) == BATCHNORM_STATUS_PART);
    CHECK(batchnorm_part_states(joined_sums, len_of_sums, C, part_states) == BATCHNORM_STATUS_BYTES);
    len--;
    CHECK(batchnorm_join(PROCESSES, parts, lens, joined_sums, &len) == BATCHNORM_STATUS_PART);
    parts[0] = parts[2];
    lens[0] = lens[2];
    len = sizeof joined;
    CHECK(batchnorm_join(PROCESSES, parts, lens, joined, &len) == BATCHNORM_STATUS_PART);
    CHECK(batchnorm_join(0, parts, lens, joined, &len) == BATCHNORM_STATUS_PART);
  }

  weighted();
  OK(batchnorm_training(&whole, &training));

  shared = (struct shared *)mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared != MAP_FAILED);
  CHECK(pthread_barrierattr_init(&attributes) == 0);
  CHECK(pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0);
  CHECK(pthread_barrier_init(&shared->barrier, &attributes, PROCESSES) == 0);
  for (process = 0; process < PROCESSES; process++) {
    if (fork() == 0) {
      /* Not for ever, where one is gone. */
      alarm(60);
      return child(firsts[process], firsts[process + 1] - firsts[process]);
    }
  }
  for (i = 0; i < PROCESSES; i++) {
    int status;
    CHECK(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  printf("%d parts have the bits of the whole\n", PROCESSES);
  return 0;
}
