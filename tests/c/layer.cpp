// batchnorm.hpp: the types of the elements, lengths, exceptions, and results that are those of plain formulas.

#include "batchnorm.hpp"

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

[[noreturn]] static void line_failed(int line, const char *what) {
  std::cerr << "line " << line << ": " << what << '\n';
  std::exit(1);
}
#define CHECK(condition)                                \
  do {                                                  \
    if (!(condition)) line_failed(__LINE__, #condition); \
  } while (0)

// Asserts that a call throws this status, with these words.
template <typename Call>
static void throws(int line, batchnorm_status status, const char *words, Call call) {
  try {
    call();
  } catch (const batchnorm::error &error) {
    if (error.status() == status && std::string(error.what()).find(words) != std::string::npos) return;
    line_failed(line, error.what());
  }
  line_failed(line, "no exception");
}
#define THROWS(status, words, ...) throws(__LINE__, BATCHNORM_STATUS_##status, words, [&] { __VA_ARGS__; })

// What follows a normalization has the values of plain loops after it.
template <typename T>
static void fused(const batchnorm::problem &problem, const std::vector<T> &x, const std::array<T, 3> &gamma,
                  std::vector<batchnorm::state> states) {
  using batchnorm::activation;
  // No u is next to where a derivative jumps.
  const std::vector<T> mean = {T(4.3), T(5.2), T(6.1)}, var = {1, 4, 9};
  std::vector<T> z(24), bare(24), y(24), dx(24), dz(24), over;
  for (std::size_t i = 0; i < 24; i++) z[i] = static_cast<T>(i % 5) - 2;
  std::vector<std::uint64_t> mask(problem.mask_len(), 99), again(1);
  CHECK(mask.size() == 1);

  batchnorm::training<T>(problem).x(x).gamma(gamma).y(bare).states(states).run();
  batchnorm::training<T>(problem).x(x).gamma(gamma).residual(z).mask(mask).activation(activation::relu()).y(y)
      .states(states).run();
  for (std::size_t i = 0; i < 24; i++) {
    const T u = bare[i] + z[i];
    CHECK(y[i] == (u > 0 ? u : 0) && (mask[0] >> i & 1) == (u > 0));
  }
  CHECK(mask[0] >> 24 == 0);
  over = z;
  batchnorm::training<T>(problem).x(x).gamma(gamma).residual(over).mask(again).activation(activation::relu())
      .y(over).states(states).run();
  CHECK(over == y && again == mask);
  const std::vector<T> dy(24, 1);
  batchnorm::backward<T>(problem).x(x).dy(dy).states(states).gamma(gamma).mask(mask).activation(activation::relu())
      .dx(dx).dz(dz).run();
  for (std::size_t i = 0; i < 24; i++) CHECK(dz[i] == (y[i] > 0));
  over = dy;
  batchnorm::backward<T>(problem).x(x).dy(over).states(states).gamma(gamma).mask(mask).activation(activation::relu())
      .dz(over).run();
  CHECK(over == dz);

  // Without a residual u is found from x anew.
  const std::array<T, 3> beta = {1, 0, -1};
  batchnorm::inference<T>(problem).x(x).mean(mean).var(var).beta(beta).y(bare).run();
  const struct {
    batchnorm::activation activation;
    double (*of)(double);
  } activations[] = {
      {activation::identity(), [](double u) { return u; }},
      {activation::relu(), [](double u) { return u > 0 ? u : 0; }},
      {activation::leaky_relu(0.25), [](double u) { return u > 0 ? u : 0.25 * u; }},
      {activation::clip(-0.5, 0.75), [](double u) { return u < -0.5 ? -0.5 : u > 0.75 ? 0.75 : u; }},
      {activation::hard_swish(), [](double u) { return u <= -3 ? 0 : u >= 3 ? u : u * (u + 3) / 6; }},
      {activation::silu(), [](double u) { return u / (1 + std::exp(-u)); }},
  };
  for (const auto &each : activations) {
    batchnorm::inference<T>(problem).x(x).mean(mean).var(var).beta(beta).activation(each.activation).y(y).run();
    for (std::size_t i = 0; i < 24; i++) CHECK(std::abs(y[i] - each.of(bare[i])) < 1e-5);
    batchnorm::backward<T>(problem).x(x).dy(dy).mean(mean).var(var).beta(beta).activation(each.activation).dx(dx).run();
    for (std::size_t i = 0; i < 24; i++) {
      const double slope = (each.of(bare[i] + 1e-5) - each.of(bare[i] - 1e-5)) / 2e-5;
      CHECK(std::abs(dx[i] - slope / std::sqrt(var[i / 4 % 3] + 1e-5)) < 1e-3);
    }
  }

  THROWS(SIZE, "mask has length 2, must have length 1",
         mask.push_back(0); batchnorm::inference<T>(problem).mask(mask).run());
  THROWS(ACTIVATION, "SiLU goes with no residual",
         batchnorm::inference<T>(problem).x(x).mean(mean).var(var).residual(z).activation(activation::silu()).y(y).run());
  THROWS(CLIP, "clip is from 1.0 to 0.0",
         batchnorm::training<T>(problem).x(x).activation(activation::clip(1, 0)).y(y).states(states).run());
  THROWS(NULL_POINTER, "mask is null",
         batchnorm::backward<T>(problem).x(x).dy(dy).states(states).activation(activation::relu()).dz(dz).run());
}

template <typename T>
static void everything(const char *name) {
  const batchnorm::problem problem = batchnorm::problem(batchnorm::nchw, 2, 3, {2, 2}).threads(1);
  CHECK(problem.size() == 24 && problem.channels() == 3);
  std::vector<T> x(24), y(24), dx(24);
  for (std::size_t i = 0; i < 24; i++) x[i] = static_cast<T>(i * 7 % 11);
  const std::array<T, 3> gamma = {1, 2, 3};
  const T beta[3] = {0, 1, 0};
  std::vector<batchnorm::state> states(3), others(3);

  batchnorm::statistics<T>(problem).x(x).states(others).run();
  batchnorm::training<T>(problem).x(x).gamma(gamma).beta(beta).y(y).states(states).run();
  CHECK(states[1].count == 8 && states[1].mean() == others[1].mean());
  CHECK(std::abs(states[1].variance_unbiased() * 7 - states[1].variance() * 8) < 1e-9);
  double sum = 0;  // of channel 1: beta's
  for (std::size_t i = 0; i < 24; i++) sum += i / 4 % 3 == 1 ? y[i] : 0;
  CHECK(std::abs(sum - 8) < 1e-5);

  std::array<T, 3> dgamma, dbeta;
  batchnorm::backward<T>(problem).x(x).dy(y).states(states).gamma(gamma).dx(dx).dgamma(dgamma).dbeta(dbeta).run();
  CHECK(std::abs(dbeta[1] - 8) < 1e-5 && dgamma[1] > 0);
  std::vector<T> over = y;
  batchnorm::backward<T>(problem).x(x).dy(over).states(states).gamma(gamma).dx(over).run();
  CHECK(over == dx);

  std::vector<T> mean(3, 0), var(3, 1);
  batchnorm::update_running<T>(problem).cumulative(0).unbiased(false).states(states).mean(mean).var(var).run();
  CHECK(mean[2] == static_cast<T>(states[2].mean()) && var[2] == static_cast<T>(states[2].variance()));
  over = x;
  batchnorm::inference<T>(problem).x(x).mean(mean).var(var).y(y).run();
  batchnorm::inference<T>(problem).x(over).mean(mean).var(var).y(over).run();
  CHECK(over == y);
  batchnorm::backward<T>(problem).x(x).dy(y).mean(mean).var(var).dx({dx.data(), 24}).run();
  // The running statistics are the batch's, so there is nothing to correct; by other ones, up to a limit.
  std::vector<double> r(3), d(3), long_r(24);
  std::vector<T> scaled(3), shifted(3);
  const auto renorm = [&](double r_max, double d_max) {
    batchnorm::renorm<T> call(problem, r_max, d_max);
    call.states(states).mean(mean).var(var).gamma(gamma).beta(beta).r(r).d(d).renorm_gamma(scaled).renorm_beta(shifted);
    return call.eps(1e-5);
  };
  renorm(3, 5).run();
  CHECK(std::abs(r[1] - 1) < 1e-5 && std::abs(d[1]) < 1e-3 && std::abs(scaled[1] - gamma[1]) < 1e-4);
  renorm(1, 0).run();
  CHECK(r[2] == 1 && d[2] == 0 && scaled[2] == gamma[2] && shifted[2] == beta[2]);
  THROWS(LIMIT, "r_max is 0.5, must be at least 1.0", renorm(0.5, 0).run());
  THROWS(SIZE, "r has length 24, must have length 3", batchnorm::renorm<T>(problem, 1, 0).r(long_r).run());
  std::vector<T> parameter(gamma.begin(), gamma.end());
  batchnorm::step<T>(problem).lr(0.5).gradient(dbeta).parameter(parameter).run();
  CHECK(std::abs(parameter[1] - (2 - 0.5 * dbeta[1])) < 1e-5);
  batchnorm::merge(states, others);
  CHECK(states[0].count == 16 && states[0].mean() == others[0].mean());

  // Output channels first with 4 inputs each, last, and in groups of their own.
  std::vector<T> weight(12, 4), bias(3, 1);
  const std::array<T, 3> root = {2, 4, 8}, square = {4, 16, 64};
  batchnorm::fold<T>(problem, 1, 4).mean(beta).var(square).gamma(root).beta(beta).eps(0).weight(weight).bias(bias).run();
  CHECK(weight == std::vector<T>(12, 4) && (bias == std::vector<T>{1, 1, 1}));
  batchnorm::fold<T>(problem, 4, 1).mean(beta).var(square).eps(0).weight(weight).bias(bias).run();
  CHECK(weight[0] == 2 && weight[1] == 1 && weight[5] == T(0.5) && (bias == std::vector<T>{T(0.5), 0, T(0.125)}));
  weight.assign(12, 8);
  batchnorm::fold<T>(problem, 6, 2, 3).mean(beta).var(square).eps(0).weight(weight).bias(bias).run();
  CHECK(weight[3] == 4 && weight[4] == 2 && weight[7] == 2 && weight[8] == 1);

  fused<T>(problem, x, gamma, states);

  THROWS(SIZE, "x has length 3, must have length 24", batchnorm::training<T>(problem).x(gamma).run());
  THROWS(SIZE, "gamma has length 24, must have length 3", batchnorm::training<T>(problem).gamma(x).run());
  THROWS(SIZE, "from has length 3, must have length 1", batchnorm::merge({states.data(), 1}, others));
  THROWS(SIZE, "weight has length 12, must have length 24", batchnorm::fold<T>(problem, 2, 4).weight(weight).run());
  THROWS(SIZE, "bias has length 12, must have length 3", batchnorm::fold<T>(problem, 1, 4).bias(weight).run());
  THROWS(GROUPS, "groups is 2, must divide the number of channels, 3",
         batchnorm::fold<T>(problem, 2, 6, 2).mean(mean).var(var).weight(weight).bias(bias).run());
  THROWS(OVERFLOW, "more elements", batchnorm::fold<T>(problem, SIZE_MAX, 2));
  THROWS(NULL_POINTER, "y is null", batchnorm::training<T>(problem).x(x).states(states).run());
  THROWS(EXCLUSIVE, "mean is given",
         batchnorm::backward<T>(problem).x(x).dy(x).states(others).mean(mean).var(var).run());
  THROWS(EPSILON, "eps is -1", batchnorm::training<T>(problem).x(x).y(y).states(states).eps(-1).run());
  THROWS(OVERLAP, "overlaps", batchnorm::inference<T>(problem).x(x).mean(mean).var(mean).gamma(mean).y(y).run();
         batchnorm::update_running<T>(problem).states(states).mean(mean).var(mean).run());
  std::cout << name << '\n';
}

// A 16-bit number from elsewhere.
struct brain {
  std::uint16_t bits;
};
template <>
struct batchnorm::element<brain> : batchnorm::element<batchnorm::bfloat16> {};

template <typename H>
static bool same(const std::vector<H> &a, const std::vector<H> &b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(H)) == 0;
}

// Tensors of 16-bit numbers, `of` making one of its bits; these are those of 0 to 4, whose results are such numbers too.
template <typename H>
static void halves(const char *name, H (*of)(std::uint16_t), const std::array<std::uint16_t, 5> &bits) {
  const auto number = [&](int value) { return of(value < 0 ? bits[-value] | 0x8000 : bits[value]); };
  const auto tensor = [&](std::array<int, 8> values) {
    std::vector<H> numbers;
    for (int value : values) numbers.push_back(number(value));
    return numbers;
  };
  const batchnorm::problem problem(batchnorm::nhwc, 4, 2);
  const std::vector<H> x = tensor({1, 2, 3, 4, 1, 2, 3, 4}), expected = tensor({-1, 0, 1, 4, -1, 0, 1, 4});
  const std::array<float, 2> gamma = {1, 2}, beta = {0, 2};
  std::vector<batchnorm::state> states(2), others(2);
  std::vector<H> y(8), dx(8), dz(8), over;

  batchnorm::statistics<H>(problem).x(x).states(others).run();
  batchnorm::training<H>(problem).x(x).gamma(gamma).beta(beta).eps(0).y(y).states(states).run();
  CHECK(same(y, expected) && states[1].mean() == 3 && others[1].mean() == 3 && others[0].variance() == 1);
  over = x;
  batchnorm::training<H>(problem).x(over).gamma(gamma).beta(beta).eps(0).y(over).states(states).run();
  CHECK(same(over, expected));
  std::vector<float> mean(2), var(2), dgamma(2), dbeta(2);
  batchnorm::update_running<H>(problem).cumulative(0).unbiased(false).states(states).mean(mean).var(var).run();
  CHECK(mean[0] == 2 && mean[1] == 3 && var[0] == 1 && var[1] == 1);
  std::vector<float> wide(8);
  batchnorm::inference<H, float>(problem).x(x).mean(mean).var(var).gamma(gamma).beta(beta).eps(0).y(wide).run();
  CHECK((wide == std::vector<float>{-1, 0, 1, 4, -1, 0, 1, 4}));
  batchnorm::inference<float, H>(problem).x(wide).mean(beta).var(var).eps(0).y(y).run();
  CHECK(same(y, tensor({-1, -2, 1, 2, -1, -2, 1, 2})));

  // Through a ReLU behind a residual: dz is dy where y is positive.
  const auto relu = batchnorm::activation::relu();
  const std::vector<H> z = tensor({2, 1, -2, -1, 0, 0, -1, -4}), dy = tensor({1, 2, 3, 4, 1, 2, 3, 4});
  std::vector<std::uint64_t> mask(1);
  batchnorm::training<H>(problem).x(x).gamma(gamma).beta(beta).eps(0).residual(z).activation(relu).mask(mask).y(y)
      .states(states).run();
  CHECK(same(y, tensor({1, 1, 0, 3, 0, 0, 0, 0})) && mask[0] == 0x0b);
  auto backward = batchnorm::backward<H>(problem);
  backward.x(x).states(states).gamma(gamma).eps(0).activation(relu).mask(mask);
  backward.dy(dy).dx(dx).dz(dz).dgamma(dgamma).dbeta(dbeta).run();
  CHECK(same(dz, tensor({1, 2, 0, 4, 0, 0, 0, 0})));
  CHECK(dbeta[0] == 1 && dbeta[1] == 6 && dgamma[0] == -1 && dgamma[1] == 2);
  over = dy;
  backward.dy(over).dx(over).run();
  CHECK(same(over, dx));
  // The same of dy and dz in float.
  const std::vector<float> wide_dy = {1, 2, 3, 4, 1, 2, 3, 4};
  batchnorm::backward<H, float>(problem).x(x).dy(wide_dy).states(states).gamma(gamma).eps(0).activation(relu).mask(mask)
      .dx(over).dz(wide).run();
  CHECK(same(over, dx) && (wide == std::vector<float>{1, 2, 0, 4, 0, 0, 0, 0}));
  batchnorm::step<H>(problem).lr(0.5).gradient(dbeta).parameter(mean).run();
  CHECK(mean[0] == 1.5f && mean[1] == 0);

  // Weights of 16 bits beside a bias of the same, and of float.
  std::vector<H> bias = tensor({2, 3, 0, 0, 0, 0, 0, 0});
  bias.resize(2);
  over = tensor({1, 2, 3, 4, -1, -2, -3, -4});
  const std::array<float, 2> quarter = {0.25f, 1};
  batchnorm::fold<H>(problem, 4, 1).mean(gamma).var(quarter).beta(beta).eps(0).weight(over).bias(bias).run();
  CHECK(same(bias, {number(2), number(3)}));
  batchnorm::fold<H, float>(problem, 1, 4).mean(gamma).var(var).beta(beta).eps(0).weight(over).bias(mean).run();
  CHECK(over[1].bits == number(2).bits && over[0].bits == number(2).bits && mean[0] == 0.5f && mean[1] == 0);

  // The other processes hear of a wrong length, too.
  struct Heard {
    std::size_t calls, bytes;
  } heard = {0, 0};
  batchnorm_gather gather = {};
  gather.size = sizeof gather;
  gather.context = &heard;
  gather.gather = [](void *context, const void *, std::size_t len, batchnorm_collect, void *) -> std::int32_t {
    auto &heard = *static_cast<Heard *>(context);
    heard.calls++;
    heard.bytes += len;
    return 0;
  };
  THROWS(SIZE, "gamma has length 8, must have length 2",
         batchnorm::training<H>(problem).x(x).gamma({wide_dy.data(), 8}).y(y).states(states).run_among(0, gather));
  CHECK(heard.calls == 1 && heard.bytes == 0);
  THROWS(SIZE, "dx has length 1, must have length 8",
         batchnorm::backward<H>(problem).x(x).dy(dy).states(states).dx({dx.data(), 1}).run_among(0, gather));
  CHECK(heard.calls == 2 && heard.bytes == 0);

  THROWS(SIZE, "x has length 2, must have length 8", batchnorm::statistics<H>(problem).x({x.data(), 2}).run());
  THROWS(OVERLAP, "x overlaps y",
         batchnorm::inference<float, H>(problem).x(wide).mean(mean).var(var)
             .y({reinterpret_cast<H *>(wide.data()), 8}).run());
  std::cout << name << '\n';
}

// A pool that runs tasks one after the other, and counts the runs.
static void threads_of_its_own() {
  int runs = 0;
  batchnorm_threadpool pool = {};
  pool.size = sizeof pool;
  pool.context = &runs;
  pool.threads = [](void *) -> std::size_t { return 2; };
  pool.run = [](void *context, std::size_t tasks, batchnorm_task task, void *argument) {
    ++*static_cast<int *>(context);
    for (std::size_t i = 0; i < tasks; i++) task(argument, i);
  };
  const batchnorm::problem problem = batchnorm::problem(batchnorm::nchw, 16, 16, {64, 32}).threadpool(pool);
  const std::vector<float> x(problem.size(), 3);
  std::vector<batchnorm::state> states(16);
  batchnorm::statistics<float>(problem).x(x).states(states).run();
  CHECK(runs > 0 && states[15].mean() == 3);
}

int main() {
  threads_of_its_own();
  everything<float>("float");
  everything<double>("double");
  const std::array<std::uint16_t, 5> bf16 = {0, 0x3f80, 0x4000, 0x4040, 0x4080}, f16 = {0, 0x3c00, 0x4000, 0x4200, 0x4400};
  halves<batchnorm::bfloat16>("bfloat16", batchnorm::bfloat16::of_bits, bf16);
  halves<batchnorm::float16>("float16", batchnorm::float16::of_bits, f16);
  halves<brain>("another", [](std::uint16_t bits) { return brain{bits}; }, bf16);
#ifdef __STDCPP_BFLOAT16_T__
  const auto of_bf16 = [](std::uint16_t bits) -> std::bfloat16_t { return batchnorm::bfloat16::of_bits(bits); };
  halves<std::bfloat16_t>("std::bfloat16_t", of_bf16, bf16);
  CHECK(batchnorm::bfloat16(3.0bf16).bits == bf16[3]);
#endif
#ifdef __STDCPP_FLOAT16_T__
  const auto of_f16 = [](std::uint16_t bits) -> std::float16_t { return batchnorm::float16::of_bits(bits); };
  halves<std::float16_t>("std::float16_t", of_f16, f16);
  CHECK(batchnorm::float16(3.0f16).bits == f16[3]);
#endif
  THROWS(SIZE, "spatial has more than 3 axes", batchnorm::problem(batchnorm::nhwc, 1, 1, {1, 2, 3, 4}));
  THROWS(OVERFLOW, "more elements", batchnorm::training<float>(batchnorm::problem(batchnorm::nhwc, SIZE_MAX, 2)));
  // No elements: nothing to compute, and no pointers needed.
  std::vector<float> none;
  std::vector<batchnorm::state> states(2);
  states[0].count = 5;
  batchnorm::training<float>(batchnorm::problem(batchnorm::nhwc, 3, 2, {0})).x(none).y(none).states(states).run();
  CHECK(states[0].count == 0);
}
