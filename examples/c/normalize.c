/* Normalizes a small batch and prints its statistics. See README.md for how to build it. */

#include <stdio.h>

#include "batchnorm.h"

int main(void) {
  /* 4 samples of 2 channels, one element each: NHWC is sample after sample. */
  const float x[8] = {1, 8, 3, 12, 1, 8, 3, 12};
  float y[8];
  batchnorm_state states[2];
  const batchnorm_problem problem = {.size = sizeof problem, .layout = BATCHNORM_NHWC, .batch = 4, .channels = 2};
  const batchnorm_training_args args = {.size = sizeof args, .x = x, .eps = 1e-5, .y = y, .states = states};
  size_t i;

  if (batchnorm_training(&problem, &args) != BATCHNORM_STATUS_OK) {
    char message[200];
    batchnorm_last_message(message, sizeof message);
    fprintf(stderr, "%s\n", message);
    return 1;
  }
  for (i = 0; i < 2; i++) {
    printf("channel %zu: mean %.3f, variance %.3f\n", i, batchnorm_mean(&states[i]), batchnorm_variance(&states[i]));
  }
  for (i = 0; i < 8; i++) printf("%7.4f%s", y[i], i % 2 ? "\n" : " ");
  return 0;
}
