/* Tensors of 16-bit numbers: every operation has the bits that the tensors widened to float give, each result rounded
 * once. */

#include <math.h>

/* Whether elements of a type are 16-bit numbers; then bits of the significand, and the least exponent. */
static int is_half(uint32_t element) { return element == BATCHNORM_BF16 || element == BATCHNORM_F16; }
static int significand(uint32_t element) { return element == BATCHNORM_BF16 ? 7 : 10; }
static int least(uint32_t element) { return element == BATCHNORM_BF16 ? -126 : -14; }
static uint16_t infinity_of(uint32_t element) { return element == BATCHNORM_BF16 ? 0x7f80 : 0x7c00; }

/* The value of 16 bits, by its definition. */
static float widened(uint32_t element, uint16_t bits) {
  const int p = significand(element), exponent = (bits & 0x7fff) >> p, fraction = bits & ((1 << p) - 1);
  const int normal = exponent != 0;
  float value;
  if ((bits & 0x7fff) >= infinity_of(element)) {
    value = fraction == 0 ? INFINITY : NAN;
  } else {
    value = (float)ldexp(fraction + (normal << p), least(element) - p + (normal ? exponent - 1 : 0));
  }
  return bits >> 15 ? -value : value;
}

/* The bits nearest to a value, halfway the even ones: as many steps of the last bit as the value has, in its binade. */
static uint16_t narrowed(uint32_t element, float value) {
  const uint16_t sign = signbit(value) ? 0x8000 : 0, infinity = infinity_of(element);
  const int p = significand(element);
  int exponent = 0;
  double bits;
  if (isnan(value)) return element == BATCHNORM_BF16 ? 0x7fc0 : 0x7e00;
  if (isinf(value)) return sign | infinity;
  frexp(value, &exponent);
  exponent = value == 0 || exponent - 1 < least(element) ? least(element) : exponent - 1;
  bits = nearbyint(ldexp(fabs((double)value), p - exponent)) + ldexp(exponent - least(element), p);
  return sign | (bits < infinity ? (uint16_t)bits : infinity);
}

static size_t bytes_of(uint32_t element, size_t len) { return len * (is_half(element) ? 2 : 4); }

static void *allocated(size_t len) {
  void *bytes = calloc(len, 1);
  CHECK(bytes != NULL);
  return bytes;
}

/* Numbers in a tensor of its own. */
static void *stored(uint32_t element, const float *values, size_t len) {
  void *tensor = allocated(bytes_of(element, len));
  size_t i;
  for (i = 0; i < len && is_half(element); i++) ((uint16_t *)tensor)[i] = narrowed(element, values[i]);
  if (!is_half(element)) memcpy(tensor, values, bytes_of(element, len));
  return tensor;
}

/* What a tensor holds, in place of other values. */
static void load(uint32_t element, const void *tensor, float *values, size_t len) {
  size_t i;
  for (i = 0; i < len && is_half(element); i++) values[i] = widened(element, ((const uint16_t *)tensor)[i]);
}

/* That a tensor has the bits of these numbers, rounded. */
static void check_stored(uint32_t element, const void *tensor, const float *values, size_t len) {
  void *expected = stored(element, values, len);
  CHECK(memcmp(tensor, expected, bytes_of(element, len)) == 0);
  free(expected);
}

/* What all operations write: tensors of x's element, tensors of y's, what has one value per channel. */
enum { DX, DX_FROZEN, OF_X, Y = OF_X, Y_INFERENCE, DZ, DZ_FROZEN, TENSORS };
enum { DGAMMA, DBETA, DMEAN, DVAR, DGAMMA_FROZEN, DBETA_FROZEN, DMEAN_FROZEN, DVAR_FROZEN, VECTORS };
typedef struct results {
  void *tensors[TENSORS];
  float *vectors[VECTORS];
  batchnorm_state *states, *statistics;
  uint64_t *mask, *mask_inference;
} results;

static uint32_t y_element_of(const batchnorm_problem *problem) {
  return problem->y_element == BATCHNORM_Y_SAME ? problem->element : (uint32_t)problem->y_element - BATCHNORM_Y_F32;
}

static uint32_t element_of(const batchnorm_problem *problem, int tensor) {
  return tensor < OF_X ? problem->element : y_element_of(problem);
}

static results new_results(const batchnorm_problem *problem, size_t len) {
  const size_t channels = problem->channels, states = channels * sizeof(batchnorm_state), words = (len + 63) / 64;
  results results;
  int i;
  for (i = 0; i < TENSORS; i++) results.tensors[i] = allocated(bytes_of(element_of(problem, i), len));
  for (i = 0; i < VECTORS; i++) results.vectors[i] = (float *)allocated(channels * sizeof(float));
  results.states = (batchnorm_state *)allocated(states);
  results.statistics = (batchnorm_state *)allocated(states);
  results.mask = (uint64_t *)allocated(words * 8);
  results.mask_inference = (uint64_t *)allocated(words * 8);
  return results;
}

static void free_results(results results) {
  int i;
  for (i = 0; i < TENSORS; i++) free(results.tensors[i]);
  for (i = 0; i < VECTORS; i++) free(results.vectors[i]);
  free(results.states);
  free(results.statistics);
  free(results.mask);
  free(results.mask_inference);
}

/* Where outputs go: apart, y and dx over x (or dy), y over the residual and dz over dy. */
enum { APART, OVER_X, OVER_DY, OVER_Z, PLACES };

/* Every operation on x, dy, z, with parameters, mean and var (four vectors of as many values as channels). */
static void operate(const batchnorm_problem *problem, size_t len, const void *const tensors[3], const float *vectors,
                    uint64_t activation, int has_residual, int place, results *to) {
  const size_t channels = problem->channels, size = bytes_of(problem->element, len);
  const size_t y_size = bytes_of(y_element_of(problem), len);
  int frozen;
  ARGS(statistics);
  ARGS(training);
  ARGS(inference);
  statistics.x = tensors[0];
  statistics.states = to->statistics;
  OK(batchnorm_statistics(problem, &statistics));
  training.x = inference.x = tensors[0];
  training.gamma = inference.gamma = vectors;
  training.beta = inference.beta = vectors + channels;
  inference.mean = vectors + 2 * channels;
  inference.var = vectors + 3 * channels;
  training.eps = inference.eps = 1e-5;
  training.activation = inference.activation = activation;
  training.slope = inference.slope = 0.25;
  training.lo = inference.lo = -1.5;
  training.hi = inference.hi = 2.0;
  training.states = to->states;
  training.y = to->tensors[Y];
  inference.y = to->tensors[Y_INFERENCE];
  if (activation < BATCHNORM_HARD_SWISH) {
    training.mask = to->mask;
    inference.mask = to->mask_inference;
  }
  if (has_residual) training.residual = inference.residual = tensors[2];
  if (place == OVER_X) {
    training.x = memcpy(training.y, tensors[0], size);
    inference.x = memcpy(inference.y, tensors[0], size);
  } else if (place == OVER_Z && has_residual) {
    training.residual = memcpy(training.y, tensors[2], y_size);
    inference.residual = memcpy(inference.y, tensors[2], y_size);
  }
  OK(batchnorm_training(problem, &training));
  OK(batchnorm_inference(problem, &inference));

  for (frozen = 0; frozen <= 1; frozen++) {
    float **gradients = to->vectors + (frozen ? DGAMMA_FROZEN : DGAMMA);
    ARGS(backward);
    backward.x = tensors[0];
    backward.dy = tensors[1];
    backward.gamma = training.gamma;
    backward.beta = training.beta;
    backward.eps = training.eps;
    backward.activation = activation;
    backward.slope = training.slope;
    backward.lo = training.lo;
    backward.hi = training.hi;
    backward.dx = to->tensors[DX + frozen];
    backward.dgamma = gradients[DGAMMA];
    backward.dbeta = gradients[DBETA];
    backward.dmean = gradients[DMEAN];
    backward.dvar = gradients[DVAR];
    if (frozen) {
      backward.mean = inference.mean;
      backward.var = inference.var;
    } else {
      backward.states = to->states;
    }
    if (has_residual) {
      backward.mask = frozen ? to->mask_inference : to->mask;
      backward.dz = to->tensors[DZ + frozen];
    }
    if (place == OVER_X) backward.x = memcpy(backward.dx, tensors[0], size);
    if (place == OVER_DY) backward.dy = memcpy(backward.dx, tensors[1], size);
    if (place == OVER_Z && has_residual) backward.dy = memcpy(backward.dz, tensors[1], y_size);
    OK(batchnorm_backward(problem, &backward));
  }
}

/* One problem: as it is, and with all of its tensors widened. */
static void halves_of(const batchnorm_problem *problem, size_t len, uint64_t activation, int has_residual, int place) {
  const size_t channels = problem->channels;
  const uint32_t elements[3] = {problem->element, y_element_of(problem), y_element_of(problem)};
  batchnorm_problem wide = *problem;
  float *values[3], *vectors = (float *)allocated(4 * channels * sizeof(float));
  const void *tensors[3], *wide_tensors[3];
  void *owned[3];
  results got, expected;
  size_t i;
  wide.element = BATCHNORM_F32;
  wide.y_element = BATCHNORM_Y_SAME;
  for (i = 0; i < 4 * channels; i++) vectors[i] = value_f32(7 * i) / 64;
  for (i = 3 * channels; i < 4 * channels; i++) vectors[i] = vectors[i] * vectors[i] + 1;
  /* As binary16, results of one channel are beyond the largest number, of another subnormal. */
  vectors[0] = 3e6f;
  vectors[1] = 1e-6f;
  vectors[channels + 1] = 0;
  for (i = 0; i < 3; i++) {
    wide_tensors[i] = values[i] = (float *)allocated(len * sizeof(float));
    fill_f32(values[i], len, 1000003 * i);
    /* Subnormal as binary16; and what makes a channel NaN. */
    values[i][0] = 3e-7f;
    values[i][len / 2] = i == 0 ? NAN : -7e-8f;
    tensors[i] = owned[i] = stored(elements[i], values[i], len);
    load(elements[i], tensors[i], values[i], len);
  }
  got = new_results(problem, len);
  expected = new_results(&wide, len);
  operate(problem, len, tensors, vectors, activation, has_residual, place, &got);
  operate(&wide, len, wide_tensors, vectors, activation, has_residual, APART, &expected);
  for (i = 0; i < TENSORS; i++) {
    check_stored(element_of(problem, (int)i), got.tensors[i], (const float *)expected.tensors[i], len);
  }
  for (i = 0; i < VECTORS; i++) {
    CHECK(memcmp(got.vectors[i], expected.vectors[i], channels * sizeof(float)) == 0);
  }
  CHECK(memcmp(got.states, expected.states, channels * sizeof(batchnorm_state)) == 0);
  CHECK(memcmp(got.statistics, expected.statistics, channels * sizeof(batchnorm_state)) == 0);
  CHECK(memcmp(got.mask, expected.mask, (len + 63) / 64 * 8) == 0);
  CHECK(memcmp(got.mask_inference, expected.mask_inference, (len + 63) / 64 * 8) == 0);
  free_results(got);
  free_results(expected);
  for (i = 0; i < 3; i++) {
    free(values[i]);
    free(owned[i]);
  }
  free(vectors);
}

/* Each activation with and without a residual, each place for outputs. */
static void halves_of_each(const batchnorm_problem *problem, size_t len) {
  uint64_t activation;
  int has_residual, place;
  for (activation = BATCHNORM_IDENTITY; activation <= BATCHNORM_SILU; activation++) {
    for (has_residual = 0; has_residual <= (activation < BATCHNORM_HARD_SWISH); has_residual++) {
      for (place = APART; place < PLACES; place++) {
        const int over_another = place == OVER_X || place == OVER_DY;
        if (over_another && problem->element != y_element_of(problem)) continue;
        halves_of(problem, len, activation, has_residual, place);
      }
    }
  }
}

/* Elements of x and y in every way, in both layouts. */
static void halves(void) {
  static const uint32_t elements[3] = {BATCHNORM_F32, BATCHNORM_BF16, BATCHNORM_F16};
  uint32_t x, y, layout, bits;
  batchnorm_problem problem;
  for (bits = 0; bits < 0x10000; bits++) {
    const float bf16 = widened(BATCHNORM_BF16, (uint16_t)bits), f16 = widened(BATCHNORM_F16, (uint16_t)bits);
    CHECK(isnan(bf16) || narrowed(BATCHNORM_BF16, bf16) == bits);
    CHECK(isnan(f16) || narrowed(BATCHNORM_F16, f16) == bits);
  }
  for (layout = BATCHNORM_NCHW; layout <= BATCHNORM_NHWC; layout++) {
    for (x = 0; x < 3; x++) {
      for (y = 0; y < 3; y++) {
        problem = problem_of(elements[x], layout, 1, 2, 19, 5, 7);
        problem.y_element = x == y ? BATCHNORM_Y_SAME : BATCHNORM_Y_F32 + elements[y];
        halves_of_each(&problem, 2 * 19 * 5 * 7);
      }
    }
  }
  /* Large enough for the pool. */
  problem = problem_of(BATCHNORM_F32, BATCHNORM_NHWC, 0, 8, 16, 48, 48);
  /* x and dx of 16 bits next to y, dy, residual and dz of float. */
  problem.element = BATCHNORM_BF16;
  problem.y_element = BATCHNORM_Y_F32;
  halves_of(&problem, 8 * 16 * 48 * 48, BATCHNORM_RELU, 1, OVER_Z);
}
