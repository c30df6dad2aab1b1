/* Every function on threads of the program's own: OpenMP's, a serial pool, and threads that come late. The same bits as on
 * the calling thread, and no pool of the library's starts. */

#define _XOPEN_SOURCE 700
#include <omp.h>
#include <pthread.h>
#include <time.h>

/* Large enough for several threads. */
#define N 8
#define C 37
#define H 32
#define W 29
#define LEN (N * C * H * W)
#include "every.h"

static int runs;

static size_t openmp_threads(void *context) {
  (void)context;
  return (size_t)omp_get_max_threads();
}

static void openmp_run(void *context, size_t tasks, batchnorm_task task, void *argument) {
  (void)context;
#pragma omp parallel for schedule(static, 1)
  for (size_t i = 0; i < tasks; i++) task(argument, i);
}

static int32_t openmp_inside(void *context) {
  (void)context;
  return omp_in_parallel();
}

static const batchnorm_threadpool openmp = {
    .size = sizeof openmp, .threads = openmp_threads, .run = openmp_run, .inside = openmp_inside};

/* The same, counted. */
static void counted_run(void *context, size_t tasks, batchnorm_task task, void *argument) {
  CHECK(context == &runs && tasks <= openmp_threads(NULL));
  runs++;
  openmp_run(context, tasks, task, argument);
}

static int32_t yes(void *context) {
  (void)context;
  return 1;
}

static size_t four(void *context) {
  (void)context;
  return 4;
}

static void serial_run(void *context, size_t tasks, batchnorm_task task, void *argument) {
  CHECK(context == &runs && tasks <= 4);
  runs++;
  for (size_t i = tasks; i-- > 0;) task(argument, i);
}

/* A thread for each task, when the others have long been done. */
typedef struct late_task {
  batchnorm_task task;
  void *argument;
  size_t number;
} late_task;

static void *late_start(void *data) {
  const late_task *late = (const late_task *)data;
  const struct timespec pause = {0, 300000};
  nanosleep(&pause, NULL);
  late->task(late->argument, late->number);
  return NULL;
}

static void late_run(void *context, size_t tasks, batchnorm_task task, void *argument) {
  pthread_t threads[4];
  late_task late[4];
  CHECK(context == &runs && tasks <= 4);
  runs++;
  for (size_t i = 0; i < tasks; i++) {
    late[i] = (late_task){task, argument, i};
    CHECK(pthread_create(&threads[i], NULL, late_start, &late[i]) == 0);
  }
  for (size_t i = 0; i < tasks; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

static uint64_t all(uint32_t layout, size_t threads) {
  return all_f64(layout, threads, all_f32(layout, threads, 0xcbf29ce484222325u));
}

/* Statistics of a tensor of ones, in a buffer of the caller's own. */
static void ones(void) {
  static float x[LEN];
  static batchnorm_state states[8][C];
  batchnorm_problem problem = problem_of(BATCHNORM_F32, BATCHNORM_NCHW, 0, N, C, H, W);
  ARGS(statistics);
#pragma omp critical
  for (size_t i = 0; i < LEN; i++) x[i] = 1.0f;
#pragma omp barrier
  statistics.x = x;
  statistics.states = states[omp_get_thread_num() % 8];
  OK(batchnorm_statistics(&problem, &statistics));
  for (size_t c = 0; c < C; c++) CHECK(batchnorm_mean(&statistics.states[c]) == 1.0);
}

int main(void) {
  const struct {
    const char *name;
    batchnorm_threadpool pool;
  } pools[] = {
      {"openmp", {sizeof(batchnorm_threadpool), &runs, openmp_threads, counted_run, openmp_inside, NULL}},
      {"awake", {sizeof(batchnorm_threadpool), &runs, openmp_threads, counted_run, openmp_inside, yes}},
      {"serial", {sizeof(batchnorm_threadpool), &runs, four, serial_run, NULL, NULL}},
      {"late", {sizeof(batchnorm_threadpool), &runs, four, late_run, NULL, NULL}},
  };
  const int threads = omp_get_max_threads();
  uint64_t alone[2];
  CHECK(threads > 1 && threads <= 8);
  for (uint32_t layout = 0; layout < 2; layout++) alone[layout] = all(layout, 1);
  for (size_t i = 0; i < sizeof pools / sizeof *pools; i++) {
    threadpool = &pools[i].pool;
    for (uint32_t layout = 0; layout < 2; layout++) {
      for (size_t limit = 0; limit <= 2; limit++) {
        runs = 0;
        CHECK(all(layout, limit) == alone[layout]);
        CHECK((runs > 0) == (limit != 1));
      }
    }
    printf("%s\n", pools[i].name);
  }

  /* From inside a region calls stay on their thread. */
  threadpool = &pools[0].pool;
  runs = 0;
#pragma omp parallel
  ones();
  CHECK(runs == 0);
  threadpool = &openmp;
  ones();

  /* OpenMP's threads, and no others. */
  CHECK(threads_are(threads));
  return 0;
}
