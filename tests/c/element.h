/* Everything the interface has for one element: T, its functions NAME(...). Included once for each element. */

static T FUNCTION(value)(size_t i) { return (T)((double)((i * 2654435761u) >> 8 & 0xffffu) / 256.0 - 100.0); }

static void FUNCTION(fill)(T *values, size_t len, size_t start) {
  size_t i;
  for (i = 0; i < len; i++) values[i] = FUNCTION(value)(start + i);
}

static uint64_t FUNCTION(all)(uint32_t layout, uint32_t serial, uint64_t hash) {
  const batchnorm_problem problem = {layout, serial, N, C, {D, H, W}};
  const double factors[3] = {0.9, 0.1, 0.0}; /* of decay, momentum, cumulative */
  static T x[LEN], dy[LEN], y[LEN], dx[LEN];
  T gamma[C], beta[C], mean[C], var[C], dgamma[C], dbeta[C], dmean[C], dvar[C];
  batchnorm_state states[C], merged[C];
  size_t c;
  uint32_t rule, unbiased;
  FUNCTION(fill)(x, LEN, 0);
  FUNCTION(fill)(dy, LEN, 1000003);
  FUNCTION(fill)(gamma, C, 11);
  FUNCTION(fill)(beta, C, 222);
  FUNCTION(fill)(mean, C, 3333);
  for (c = 0; c < C; c++) var[c] = (T)(c + 1);

  CHECK(NAME(statistics)(&problem, x, states) == BATCHNORM_STATUS_OK);
  memcpy(merged, states, sizeof states);
  CHECK(batchnorm_merge(C, merged, states) == BATCHNORM_STATUS_OK);
  CHECK(merged[0].count == 2 * states[0].count);
  hash = hash_bytes(hash, merged, sizeof merged);

  CHECK(NAME(forward_training)(&problem, x, gamma, beta, 1e-5, y, states) == BATCHNORM_STATUS_OK);
  hash = hash_bytes(hash_bytes(hash, y, sizeof y), states, sizeof states);
  CHECK(NAME(backward)(&problem, x, dy, states, gamma, 1e-5, dx, dgamma, dbeta, dmean, dvar) == BATCHNORM_STATUS_OK);
  hash = hash_bytes(hash_bytes(hash, dx, sizeof dx), dgamma, sizeof dgamma);
  hash = hash_bytes(hash_bytes(hash, dbeta, sizeof dbeta), dmean, sizeof dmean);
  hash = hash_bytes(hash, dvar, sizeof dvar);
  CHECK(NAME(backward_frozen)(&problem, x, dy, mean, var, gamma, 1e-5, NULL, NULL, dbeta, dmean, dvar) ==
        BATCHNORM_STATUS_OK);
  hash = hash_bytes(hash_bytes(hash, dbeta, sizeof dbeta), dmean, sizeof dmean);
  hash = hash_bytes(hash, dvar, sizeof dvar);
  CHECK(NAME(backward_frozen)(&problem, x, dy, mean, var, NULL, 1e-5, dx, dgamma, NULL, NULL, NULL) ==
        BATCHNORM_STATUS_OK);
  hash = hash_bytes(hash_bytes(hash, dx, sizeof dx), dgamma, sizeof dgamma);
  for (rule = BATCHNORM_DECAY; rule <= BATCHNORM_CUMULATIVE; rule++) {
    for (unbiased = 0; unbiased <= 1; unbiased++) {
      const batchnorm_update update = {rule, unbiased, factors[rule]};
      CHECK(NAME(update_running)(C, &update, 3, states, mean, var) == BATCHNORM_STATUS_OK);
      hash = hash_bytes(hash_bytes(hash, mean, sizeof mean), var, sizeof var);
    }
  }
  CHECK(NAME(step)(C, 0.5, dgamma, gamma) == BATCHNORM_STATUS_OK);
  hash = hash_bytes(hash, gamma, sizeof gamma);

  /* In place. */
  CHECK(NAME(forward_inference)(&problem, x, mean, var, NULL, beta, 0.0, y) == BATCHNORM_STATUS_OK);
  memcpy(dx, x, sizeof x);
  CHECK(NAME(forward_inference)(&problem, dx, mean, var, NULL, beta, 0.0, dx) == BATCHNORM_STATUS_OK);
  CHECK(memcmp(dx, y, sizeof y) == 0);
  hash = hash_bytes(hash, y, sizeof y);
  CHECK(NAME(forward_training)(&problem, x, NULL, NULL, 1e-5, x, states) == BATCHNORM_STATUS_OK);
  return hash_bytes(hash, x, sizeof x);
}
