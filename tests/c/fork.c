/* Children of fork(), made while calls are under way on other threads: their own calls finish, with the same bits. A child
 * that has not finished within its time has hung, and ends by SIGALRM. */

#define _XOPEN_SOURCE 700
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "batchnorm.h"

#define CHANNELS 16
#define LEN (4 * CHANNELS * 72 * 72) /* 1.3 MB: for several threads always */
#define CALLERS 3
#define FORKS 400
#define SECONDS 60

static float x[LEN], dy[LEN], expected_y[LEN], expected_dx[LEN];
static atomic_int ending;

/* Training and backward of the same data; whether their results are the expected ones, or what those become. */
static int calls(float *y, float *dx, int first) {
  batchnorm_state states[CHANNELS];
  batchnorm_problem problem = {.size = sizeof problem, .batch = 4, .channels = CHANNELS, .spatial = {72, 72}};
  batchnorm_training_args training = {.size = sizeof training, .x = x, .eps = 1e-5, .y = y, .states = states};
  batchnorm_backward_args backward = {
      .size = sizeof backward, .x = x, .dy = dy, .states = states, .eps = 1e-5, .dx = dx};
  problem.threads = (size_t)first;
  if (batchnorm_training(&problem, &training) != BATCHNORM_STATUS_OK) return 0;
  if (batchnorm_backward(&problem, &backward) != BATCHNORM_STATUS_OK) return 0;
  return first || (memcmp(y, expected_y, sizeof expected_y) == 0 && memcmp(dx, expected_dx, sizeof expected_dx) == 0);
}

static void *caller(void *number) {
  static float y[CALLERS][LEN], dx[CALLERS][LEN];
  const size_t i = *(const size_t *)number;
  while (!atomic_load(&ending)) {
    if (!calls(y[i], dx[i], 0)) return (void *)"a caller's results differ";
  }
  return NULL;
}

int main(void) {
  static float y[LEN], dx[LEN];
  pthread_t threads[CALLERS];
  size_t numbers[CALLERS], i;
  void *wrong;
  int status, forks;
  for (i = 0; i < LEN; i++) {
    x[i] = (float)(i * 2654435761u % 1000);
    dy[i] = (float)(i * 40503u % 777);
  }
  if (!calls(expected_y, expected_dx, 1)) return 1; /* on this thread; no pool yet */
  batchnorm_set_threads(3);
  for (i = 0; i < CALLERS; i++) {
    numbers[i] = i;
    if (pthread_create(&threads[i], NULL, caller, &numbers[i]) != 0) return 2;
  }
  for (forks = 0; forks < FORKS; forks++) {
    const pid_t child = fork();
    if (child < 0) return 3;
    if (child == 0) {
      alarm(SECONDS);
      if (batchnorm_set_threads(2) != BATCHNORM_STATUS_THREADS) _exit(4);
      for (i = 0; i < 2; i++) {
        memset(y, 0, sizeof y);
        memset(dx, 0, sizeof dx);
        if (!calls(y, dx, 0)) _exit(5);
      }
      _exit(0);
    }
    if (waitpid(child, &status, 0) != child || status != 0) {
      printf("child %d: status %x\n", forks, status);
      return 6;
    }
    /* The parent's own calls go on. */
    if (!calls(y, dx, 0)) return 7;
  }
  atomic_store(&ending, 1);
  for (i = 0; i < CALLERS; i++) {
    if (pthread_join(threads[i], &wrong) != 0 || wrong != NULL) return 8;
  }
  printf("%d children finished\n", forks);
  return 0;
}
