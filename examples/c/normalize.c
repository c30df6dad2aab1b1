/* Normalizes a small batch and prints its statistics. See README.md for how to build it. */

#include <stdio.h>

#include "batchnorm.h"

int main(void) {
  /* 4 samples of 2 channels, one element each: NHWC is sample after sample. */
  const float x[8] = {1, 8, 3, 12, 1, 8, 3, 12};
  float y[8];
  batchnorm_state states[2];
  const batchnorm_problem problem = {BATCHNORM_NHWC, 0, 4, 2, {1, 1, 1}};
  size_t i;

  batchnorm_status status = batchnorm_forward_training_f32(&problem, x, NULL, NULL, 1e-5, y, states);
  if (status != BATCHNORM_STATUS_OK) {
    char message[200];
    batchnorm_last_message(message, sizeof message);
    fprintf(stderr, "%s\n", message);
    return 1;
  }
  for (i = 0; i < 2; i++) {
    const batchnorm_state *s = &states[i];
    printf("channel %zu: mean %.3f, variance %.3f\n", i, s->mean + s->mean_low, s->m2 / (double)s->count);
  }
  for (i = 0; i < 8; i++) printf("%7.4f%s", y[i], i % 2 ? "\n" : " ");
  return 0;
}
