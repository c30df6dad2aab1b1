/* Plays an engine whose threads are OpenMP's: regions of some milliseconds, bound by memory, alternate with training and
 * backward, as the layers of a network do. Those run on the library's pool and on OpenMP's threads, in turns.
 *
 * Arguments: seconds for a shape; 1 if the threads are awake between their regions, 0 if not. Prints, for each shape, the
 * median times and how many times as fast as on the library's pool the calls are on the program's threads: training, backward,
 * and both with the regions. */

#define _XOPEN_SOURCE 700
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "batchnorm.h"

enum { REGION = 3 << 20, MOST = 400, WARM_UP = 2 };

static const size_t SHAPES[][4] = {
    {16, 64, 112, 112}, {16, 256, 56, 56}, {16, 64, 56, 56}, {16, 128, 28, 28}, {16, 512, 28, 28},
    {16, 256, 14, 14},  {16, 1024, 14, 14}, {16, 512, 7, 7}, {16, 2048, 7, 7},  {4, 64, 28, 28},
    {1, 64, 56, 56},    {8, 256, 7, 7},     {2, 64, 28, 28}, {1, 2048, 7, 7}};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES };

enum variant { POOL, HOST, VARIANTS };
enum part { TRAINING, BACKWARD, STEP, PARTS };

static size_t host_threads(void *context) {
  (void)context;
  return (size_t)omp_get_max_threads();
}

static void host_run(void *context, size_t tasks, batchnorm_task task, void *argument) {
  (void)context;
#pragma omp parallel for schedule(static, 1)
  for (size_t i = 0; i < tasks; i++) task(argument, i);
}

static int32_t host_inside(void *context) {
  (void)context;
  return omp_in_parallel();
}

static int awake;

static int32_t host_awake(void *context) {
  (void)context;
  return awake;
}

static const batchnorm_threadpool host = {.size = sizeof host,
                                          .threads = host_threads,
                                          .run = host_run,
                                          .inside = host_inside,
                                          .awake = host_awake};

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static float *floats(size_t len) {
  float *values = malloc(len * sizeof *values);
  if (values == NULL) exit(2);
  for (size_t i = 0; i < len; i++) values[i] = (float)(i * 2654435761u >> 8 & 0xffffu) / 256.0f - 100.0f;
  return values;
}

/* The engine's own work: a triad. */
static void region(float *a, const float *b, const float *c) {
#pragma omp parallel for
  for (size_t i = 0; i < REGION; i++) a[i] = b[i] + 0.5f * c[i];
}

static void ok(batchnorm_status status) {
  if (status == BATCHNORM_STATUS_OK) return;
  fprintf(stderr, "%s\n", batchnorm_status_message(status));
  exit(3);
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *times, size_t count) {
  qsort(times, count, sizeof *times, ascending);
  return times[count / 2];
}

int main(int argc, char **argv) {
  const double budget = argc > 1 ? atof(argv[1]) : 1.5;
  float *a = floats(REGION), *b = floats(REGION), *c = floats(REGION);
  double logs[PARTS] = {0, 0, 0}, sums[VARIANTS] = {0, 0};
  static double times[VARIANTS][PARTS][MOST];
  awake = argc <= 2 || atoi(argv[2]) != 0;
  printf("  %-17s %18s %18s   %8s %8s %8s\n", "shape, us:", "training pool/host", "backward pool/host", "training",
         "backward", "step");
  for (size_t s = 0; s < SHAPE_COUNT; s++) {
    const size_t *dims = SHAPES[s], channels = dims[1], len = dims[0] * channels * dims[2] * dims[3];
    float *x = floats(len), *dy = floats(len);
    float *y[VARIANTS] = {floats(len), floats(len)}, *dx[VARIANTS] = {floats(len), floats(len)};
    float *dgamma = floats(channels), *dbeta = floats(channels);
    batchnorm_state *states = calloc(channels, sizeof *states);
    size_t turns = 0;
    double ratios[PARTS], medians[VARIANTS][PARTS];
    const double start = seconds();
    char name[40];
    if (states == NULL) return 2;
    for (; turns < MOST && (turns < 3 || seconds() - start < budget); turns++) {
      for (size_t v = 0; v < VARIANTS; v++) {
        const enum variant variant = (v + turns) % 2 == 0 ? POOL : HOST;
        const batchnorm_problem problem = {.size = sizeof problem,
                                           .batch = dims[0],
                                           .channels = channels,
                                           .spatial = {dims[2], dims[3]},
                                           .threadpool = variant == HOST ? &host : NULL};
        const batchnorm_training_args training = {
            .size = sizeof training, .x = x, .eps = 1e-5, .y = y[variant], .states = states};
        const batchnorm_backward_args backward = {.size = sizeof backward,
                                                  .x = x,
                                                  .dy = dy,
                                                  .states = states,
                                                  .eps = 1e-5,
                                                  .dx = dx[variant],
                                                  .dgamma = dgamma,
                                                  .dbeta = dbeta};
        /* The first step after the other's is not looked at. */
        for (int step = 0; step < WARM_UP; step++) {
          double at[5];
          at[0] = seconds();
          region(a, b, c);
          at[1] = seconds();
          ok(batchnorm_training(&problem, &training));
          at[2] = seconds();
          region(a, b, c);
          at[3] = seconds();
          ok(batchnorm_backward(&problem, &backward));
          at[4] = seconds();
          times[variant][TRAINING][turns] = at[2] - at[1];
          times[variant][BACKWARD][turns] = at[4] - at[3];
          times[variant][STEP][turns] = at[4] - at[0];
        }
      }
    }
    if (memcmp(y[POOL], y[HOST], len * sizeof *x) != 0 || memcmp(dx[POOL], dx[HOST], len * sizeof *x) != 0) return 4;
    for (int part = 0; part < PARTS; part++) {
      for (int v = 0; v < VARIANTS; v++) medians[v][part] = median(times[v][part], turns);
      ratios[part] = medians[POOL][part] / medians[HOST][part];
      logs[part] += log(ratios[part]);
    }
    for (int v = 0; v < VARIANTS; v++) sums[v] += medians[v][TRAINING] + medians[v][BACKWARD];
    snprintf(name, sizeof name, "%zux%zux%zux%zu", dims[0], dims[1], dims[2], dims[3]);
    printf("  %-17s %8.0f /%8.0f %8.0f /%8.0f   %8.2f %8.2f %8.2f\n", name, 1e6 * medians[POOL][TRAINING],
           1e6 * medians[HOST][TRAINING], 1e6 * medians[POOL][BACKWARD], 1e6 * medians[HOST][BACKWARD],
           ratios[TRAINING], ratios[BACKWARD], ratios[STEP]);
    fflush(stdout);
    free(x), free(dy), free(dgamma), free(dbeta), free(states);
    for (int v = 0; v < VARIANTS; v++) free(y[v]), free(dx[v]);
  }
  printf("  %-55s   %8.2f %8.2f %8.2f\n", "geometric mean", exp(logs[TRAINING] / SHAPE_COUNT),
         exp(logs[BACKWARD] / SHAPE_COUNT), exp(logs[STEP] / SHAPE_COUNT));
  printf("  %-55s   %8.2f\n", "all calls together", sums[POOL] / sums[HOST]);
  free(a), free(b), free(c);
  return 0;
}
