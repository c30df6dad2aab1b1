/* Everything the interface has for one element: T, ELEMENT. Included once for each element. */

static T FUNCTION(value)(size_t i) { return (T)((double)((i * 2654435761u) >> 8 & 0xffffu) / 256.0 - 100.0); }

static void FUNCTION(fill)(T *values, size_t len, size_t start) {
  size_t i;
  for (i = 0; i < len; i++) values[i] = FUNCTION(value)(start + i);
}

/* Each activation behind both forward passes, and back, with residual and mask where it goes with them. */
static uint64_t FUNCTION(fused)(const batchnorm_problem *problem, const T *x, const T *dy, const T *z, uint64_t hash) {
  static T y[LEN], dx[LEN], dz[LEN], over[LEN];
  static uint64_t mask[(LEN + 63) / 64], again[(LEN + 63) / 64];
  T gamma[C], beta[C], mean[C], var[C], dgamma[C], dbeta[C];
  batchnorm_state states[C];
  size_t c, words = 0;
  uint64_t activation;
  ARGS(training);
  ARGS(inference);
  ARGS(backward);
  FUNCTION(fill)(gamma, C, 5);
  FUNCTION(fill)(beta, C, 66);
  FUNCTION(fill)(mean, C, 777);
  for (c = 0; c < C; c++) var[c] = (T)(100 * (c + 1));
  OK(batchnorm_mask_len(problem, &words));
  CHECK(words == sizeof mask / sizeof mask[0]);

  training.eps = inference.eps = backward.eps = 1e-5;
  training.x = inference.x = backward.x = x;
  training.gamma = inference.gamma = backward.gamma = gamma;
  training.beta = inference.beta = backward.beta = beta;
  training.states = states;
  inference.mean = mean;
  inference.var = var;
  training.slope = inference.slope = backward.slope = 0.01;
  training.lo = inference.lo = backward.lo = -20.0;
  training.hi = inference.hi = backward.hi = 60.0;
  backward.dgamma = dgamma;
  backward.dbeta = dbeta;
  for (activation = BATCHNORM_IDENTITY; activation <= BATCHNORM_SILU; activation++) {
    training.activation = inference.activation = backward.activation = activation;
    training.residual = inference.residual = NULL;
    training.mask = inference.mask = NULL;
    training.y = inference.y = y;
    OK(batchnorm_training(problem, &training));
    hash = hash_bytes(hash_bytes(hash, y, sizeof y), states, sizeof states);
    backward.dy = dy;
    backward.beta = beta;
    backward.mask = NULL;
    backward.states = states;
    backward.mean = backward.var = NULL;
    backward.dx = dx;
    backward.dz = NULL;
    OK(batchnorm_backward(problem, &backward));
    hash = hash_bytes(hash, dx, sizeof dx);
    hash = hash_bytes(hash_bytes(hash, dgamma, sizeof dgamma), dbeta, sizeof dbeta);
    OK(batchnorm_inference(problem, &inference));
    hash = hash_bytes(hash, y, sizeof y);
    backward.states = NULL;
    backward.mean = mean;
    backward.var = var;
    OK(batchnorm_backward(problem, &backward));
    hash = hash_bytes(hash, dx, sizeof dx);
    hash = hash_bytes(hash_bytes(hash, dgamma, sizeof dgamma), dbeta, sizeof dbeta);

    training.residual = inference.residual = z;
    training.mask = mask;
    inference.mask = again;
    if (activation >= BATCHNORM_HARD_SWISH) {
      CHECK(batchnorm_training(problem, &training) == BATCHNORM_STATUS_ACTIVATION);
      CHECK(batchnorm_inference(problem, &inference) == BATCHNORM_STATUS_ACTIVATION);
      continue;
    }
    OK(batchnorm_inference(problem, &inference));
    hash = hash_bytes(hash_bytes(hash, y, sizeof y), again, sizeof again);
    /* y over z, then over x. */
    memcpy(over, z, sizeof over);
    inference.residual = inference.y = over;
    OK(batchnorm_inference(problem, &inference));
    CHECK(memcmp(over, y, sizeof y) == 0);
    OK(batchnorm_training(problem, &training));
    hash = hash_bytes(hash_bytes(hash, y, sizeof y), mask, sizeof mask);
    memcpy(over, z, sizeof over);
    training.residual = training.y = over;
    training.mask = again;
    OK(batchnorm_training(problem, &training));
    CHECK(memcmp(over, y, sizeof y) == 0 && memcmp(again, mask, sizeof mask) == 0);
    memcpy(over, x, sizeof over);
    training.x = training.y = over;
    training.residual = z;
    OK(batchnorm_training(problem, &training));
    CHECK(memcmp(over, y, sizeof y) == 0 && memcmp(again, mask, sizeof mask) == 0);
    training.x = x;

    backward.mask = mask;
    backward.beta = NULL;
    backward.dz = dz;
    OK(batchnorm_backward(problem, &backward));
    hash = hash_bytes(hash, dx, sizeof dx);
    backward.states = states;
    backward.mean = backward.var = NULL;
    OK(batchnorm_backward(problem, &backward));
    hash = hash_bytes(hash_bytes(hash, dx, sizeof dx), dz, sizeof dz);
    hash = hash_bytes(hash_bytes(hash, dgamma, sizeof dgamma), dbeta, sizeof dbeta);
    /* dz over dy, with dx over x; not both over dy; dx alone. */
    memcpy(over, dy, sizeof over);
    memcpy(y, x, sizeof y);
    backward.dy = backward.dz = over;
    backward.x = backward.dx = y;
    OK(batchnorm_backward(problem, &backward));
    CHECK(memcmp(over, dz, sizeof dz) == 0 && memcmp(y, dx, sizeof dx) == 0);
    memcpy(over, dy, sizeof over);
    backward.x = x;
    backward.dx = over;
    CHECK(batchnorm_backward(problem, &backward) == BATCHNORM_STATUS_OVERLAP);
    CHECK(memcmp(over, dy, sizeof over) == 0);
    backward.dz = y;
    OK(batchnorm_backward(problem, &backward));
    CHECK(memcmp(over, dx, sizeof dx) == 0 && memcmp(y, dz, sizeof dz) == 0);
  }
  return hash;
}

static uint64_t FUNCTION(all)(uint32_t layout, size_t threads, uint64_t hash) {
  const batchnorm_problem problem = problem_of(ELEMENT, layout, threads, N, C, H, W);
  const double factors[3] = {0.9, 0.1, 0.0}; /* of decay, momentum, cumulative */
  static T x[LEN], dy[LEN], y[LEN], dx[LEN], over[LEN];
  T gamma[C], beta[C], mean[C], var[C], dgamma[C], dbeta[C], dmean[C], dvar[C];
  double r[C], d[C];
  batchnorm_state states[C], merged[C];
  size_t c;
  uint32_t rule, unbiased;
  ARGS(statistics);
  ARGS(training);
  ARGS(inference);
  ARGS(backward);
  ARGS(update_running);
  ARGS(step);
  ARGS(renorm);
  ARGS(fold);
  FUNCTION(fill)(x, LEN, 0);
  FUNCTION(fill)(dy, LEN, 1000003);
  FUNCTION(fill)(gamma, C, 11);
  FUNCTION(fill)(beta, C, 222);
  FUNCTION(fill)(mean, C, 3333);
  for (c = 0; c < C; c++) var[c] = (T)(c + 1);

  statistics.x = x;
  statistics.states = states;
  OK(batchnorm_statistics(&problem, &statistics));
  memcpy(merged, states, sizeof states);
  OK(batchnorm_merge(C, merged, states));
  CHECK(merged[0].count == 2 * states[0].count);
  CHECK(batchnorm_mean(merged) == batchnorm_mean(states) && batchnorm_variance(merged) == batchnorm_variance(states));
  CHECK(batchnorm_variance_unbiased(states) > batchnorm_variance(states));
  hash = hash_bytes(hash, merged, sizeof merged);

  training.x = x;
  training.gamma = gamma;
  training.beta = beta;
  training.eps = 1e-5;
  training.y = y;
  training.states = states;
  OK(batchnorm_training(&problem, &training));
  hash = hash_bytes(hash_bytes(hash, y, sizeof y), states, sizeof states);

  backward.x = x;
  backward.dy = dy;
  backward.states = states;
  backward.gamma = gamma;
  backward.eps = 1e-5;
  backward.dx = dx;
  backward.dgamma = dgamma;
  backward.dbeta = dbeta;
  backward.dmean = dmean;
  backward.dvar = dvar;
  OK(batchnorm_backward(&problem, &backward));
  hash = hash_bytes(hash_bytes(hash, dx, sizeof dx), dgamma, sizeof dgamma);
  hash = hash_bytes(hash_bytes(hash, dbeta, sizeof dbeta), dmean, sizeof dmean);
  hash = hash_bytes(hash, dvar, sizeof dvar);
  /* dx over dy, then over x. */
  memcpy(over, dy, sizeof dy);
  backward.dy = backward.dx = over;
  OK(batchnorm_backward(&problem, &backward));
  CHECK(memcmp(over, dx, sizeof dx) == 0);
  memcpy(over, x, sizeof x);
  backward.dy = dy;
  backward.x = over;
  OK(batchnorm_backward(&problem, &backward));
  CHECK(memcmp(over, dx, sizeof dx) == 0);

  /* Through inference, whose statistics are given. */
  backward.x = x;
  backward.states = NULL;
  backward.mean = mean;
  backward.var = var;
  backward.dx = backward.dgamma = NULL;
  OK(batchnorm_backward(&problem, &backward));
  hash = hash_bytes(hash_bytes(hash, dbeta, sizeof dbeta), dmean, sizeof dmean);
  hash = hash_bytes(hash, dvar, sizeof dvar);
  backward.gamma = backward.dbeta = backward.dmean = backward.dvar = NULL;
  backward.dx = dx;
  backward.dgamma = dgamma;
  OK(batchnorm_backward(&problem, &backward));
  hash = hash_bytes(hash_bytes(hash, dx, sizeof dx), dgamma, sizeof dgamma);

  update_running.states = states;
  update_running.batches = 3;
  update_running.mean = mean;
  update_running.var = var;
  for (rule = BATCHNORM_DECAY; rule <= BATCHNORM_CUMULATIVE; rule++) {
    for (unbiased = 0; unbiased <= 1; unbiased++) {
      update_running.rule = rule;
      update_running.unbiased = unbiased;
      update_running.factor = factors[rule];
      OK(batchnorm_update_running(&problem, &update_running));
      hash = hash_bytes(hash_bytes(hash, mean, sizeof mean), var, sizeof var);
    }
  }
  step.lr = 0.5;
  step.gradient = dgamma;
  step.parameter = gamma;
  OK(batchnorm_step(&problem, &step));
  hash = hash_bytes(hash, gamma, sizeof gamma);

  /* Renormalization: gamma and beta of the batch's own statistics, corrected by the running ones. */
  renorm.states = states;
  renorm.mean = mean;
  renorm.var = var;
  renorm.gamma = gamma;
  renorm.beta = beta;
  renorm.eps = 1e-5;
  renorm.r_max = 1.5;
  renorm.d_max = 0.25;
  renorm.r = r;
  renorm.d = d;
  renorm.renorm_gamma = dmean;
  renorm.renorm_beta = dvar;
  OK(batchnorm_renorm(&problem, &renorm));
  hash = hash_bytes(hash_bytes(hash, r, sizeof r), d, sizeof d);
  hash = hash_bytes(hash_bytes(hash, dmean, sizeof dmean), dvar, sizeof dvar);
  renorm.d_max = -1;
  CHECK(batchnorm_renorm(&problem, &renorm) == BATCHNORM_STATUS_LIMIT);
  /* 0 stands for batch norm. */
  renorm.r_max = renorm.d_max = 0;
  OK(batchnorm_renorm(&problem, &renorm));
  CHECK(r[0] == 1 && d[0] == 0 && memcmp(dmean, gamma, sizeof gamma) == 0 && memcmp(dvar, beta, sizeof beta) == 0);

  /* Weights of each layout: output channels first, last, and behind their group's input channels. */
  fold.mean = mean;
  fold.var = var;
  fold.beta = beta;
  fold.bias = dbeta;
  fold.weight = dx;
  FUNCTION(fill)(dx, LEN, 41);
  for (fold.outer = 0; fold.outer <= N * H * W; fold.outer += N * H * W) {
    fold.inner = fold.outer == 0 ? N * H * W : 0;
    fold.eps = 1e-5;
    OK(batchnorm_fold(&problem, &fold));
    hash = hash_bytes(hash_bytes(hash, dx, sizeof dx), dbeta, sizeof dbeta);
  }
  fold.outer = N * C;
  fold.inner = H * W;
  fold.groups = C;
  fold.gamma = gamma;
  OK(batchnorm_fold(&problem, &fold));
  hash = hash_bytes(hash_bytes(hash, dx, sizeof dx), dbeta, sizeof dbeta);
  fold.groups = 2;
  CHECK(batchnorm_fold(&problem, &fold) == BATCHNORM_STATUS_GROUPS);

  inference.x = x;
  inference.mean = mean;
  inference.var = var;
  inference.beta = beta;
  inference.y = y;
  OK(batchnorm_inference(&problem, &inference));
  memcpy(over, x, sizeof x);
  inference.x = inference.y = over;
  OK(batchnorm_inference(&problem, &inference));
  CHECK(memcmp(over, y, sizeof y) == 0);
  hash = hash_bytes(hash, y, sizeof y);
  FUNCTION(fill)(over, LEN, 31337);
  hash = FUNCTION(fused)(&problem, x, dy, over, hash);
  training.gamma = training.beta = NULL;
  training.y = x;
  OK(batchnorm_training(&problem, &training));
  return hash_bytes(hash, x, sizeof x);
}
