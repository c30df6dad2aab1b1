// batchnorm for C++17: batchnorm.h with its types back. Elements are template parameters, tensors and vectors are anything
// contiguous (or pointer and size), whose lengths are checked; what is wrong with a call is thrown as batchnorm::error, by run().
// Tensors may be of 16-bit numbers too: then everything that has one value per channel is of float.
//
//   std::vector<float> x = {1, 8, 3, 12, 1, 8, 3, 12}, y(8);
//   std::vector<batchnorm::state> states(2);
//   batchnorm::problem problem(batchnorm::nhwc, 4, 2);
//   batchnorm::training<float>(problem).x(x).y(y).states(states).run();
//
// An operation is an object that takes its arguments one by one, and run() calls it. What the arguments mean, which may be
// left out and which may be written over others is said in batchnorm.h.

#ifndef BATCHNORM_HPP
#define BATCHNORM_HPP

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__STDCPP_BFLOAT16_T__) || defined(__STDCPP_FLOAT16_T__)
#include <bit>
#include <stdfloat>
#endif

#include "batchnorm.h"

namespace batchnorm {

// What was wrong with a call, which then has written nothing.
class error : public std::runtime_error {
 public:
  error(batchnorm_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
  batchnorm_status status() const noexcept { return status_; }

 private:
  batchnorm_status status_;
};

// Throws what is wrong, if anything is, with the last call of the C interface.
inline void check(batchnorm_status status) {
  if (status == BATCHNORM_STATUS_OK) return;
  std::string message(batchnorm_last_message(nullptr, 0), '\0');
  batchnorm_last_message(&message[0], message.size());
  message.pop_back();  // the terminating 0
  throw error(status, message);
}

// Elements that somebody else owns: anything contiguous, a pointer and a size, or nothing at all (null).
template <typename T>
class span {
 public:
  constexpr span() noexcept = default;
  constexpr span(std::nullptr_t) noexcept {}
  constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <std::size_t N>
  constexpr span(T (&array)[N]) noexcept : data_(array), size_(N) {}
  template <typename Range, typename Pointer = decltype(std::declval<Range &>().data()),
            typename = std::enable_if_t<std::is_convertible_v<std::remove_pointer_t<Pointer> (*)[], T (*)[]>>,
            typename = decltype(std::declval<Range &>().size())>
  constexpr span(Range &&range) : data_(range.data()), size_(range.size()) {}

  constexpr T *data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }

 private:
  T *data_ = nullptr;
  std::size_t size_ = 0;
};

enum layout : std::uint32_t { nchw = BATCHNORM_NCHW, nhwc = BATCHNORM_NHWC };

// The numbers of 16 bits that tensors may hold: their bits, without arithmetic. C++23's convert to them and back. Made by
// of_bits alone: as aggregates, they would take another number for bits.
struct bfloat16 {
  std::uint16_t bits;
  bfloat16() = default;
  static constexpr bfloat16 of_bits(std::uint16_t bits) noexcept {
    bfloat16 number = {};
    number.bits = bits;
    return number;
  }
#ifdef __STDCPP_BFLOAT16_T__
  // Of no other number, which would be rounded on the way.
  template <typename Number, typename = std::enable_if_t<std::is_same_v<Number, std::bfloat16_t>>>
  constexpr bfloat16(Number number) noexcept : bits(std::bit_cast<std::uint16_t>(number)) {}
  constexpr operator std::bfloat16_t() const noexcept { return std::bit_cast<std::bfloat16_t>(bits); }
#endif
};
struct float16 {
  std::uint16_t bits;
  float16() = default;
  static constexpr float16 of_bits(std::uint16_t bits) noexcept {
    float16 number = {};
    number.bits = bits;
    return number;
  }
#ifdef __STDCPP_FLOAT16_T__
  // Of no other number, which would be rounded on the way.
  template <typename Number, typename = std::enable_if_t<std::is_same_v<Number, std::float16_t>>>
  constexpr float16(Number number) noexcept : bits(std::bit_cast<std::uint16_t>(number)) {}
  constexpr operator std::float16_t() const noexcept { return std::bit_cast<std::float16_t>(bits); }
#endif
};
static_assert(sizeof(bfloat16) == 2 && sizeof(float16) == 2 && std::is_trivially_copyable_v<bfloat16> &&
                  std::is_trivially_copyable_v<float16>,
              "an array of them is one of their bits");

// What an element type is called in a problem, and the type of what has one value per channel beside it; others are no
// elements. A 16-bit type from elsewhere becomes one thus:
//
//   template <>
//   struct batchnorm::element<other::bfloat16> : batchnorm::element<batchnorm::bfloat16> {};
template <typename T>
struct element;
template <>
struct element<float> : std::integral_constant<std::uint32_t, BATCHNORM_F32> {
  using arithmetic = float;
};
template <>
struct element<double> : std::integral_constant<std::uint32_t, BATCHNORM_F64> {
  using arithmetic = double;
};
template <>
struct element<bfloat16> : std::integral_constant<std::uint32_t, BATCHNORM_BF16> {
  using arithmetic = float;
};
template <>
struct element<float16> : std::integral_constant<std::uint32_t, BATCHNORM_F16> {
  using arithmetic = float;
};
#ifdef __STDCPP_BFLOAT16_T__
template <>
struct element<std::bfloat16_t> : element<bfloat16> {};
#endif
#ifdef __STDCPP_FLOAT16_T__
template <>
struct element<std::float16_t> : element<float16> {};
#endif
template <typename T>
using arithmetic = typename element<T>::arithmetic;

static_assert(BATCHNORM_F32 == 0 && BATCHNORM_Y_BF16 == BATCHNORM_Y_F32 + BATCHNORM_BF16 &&
                  BATCHNORM_Y_F16 == BATCHNORM_Y_F32 + BATCHNORM_F16,
              "y's elements follow from x's");

// The sizes of a call's tensors, and how many threads, and whose, may work on them. Its element is that of the operation.
class problem {
 public:
  problem(batchnorm::layout layout, std::size_t batch, std::size_t channels,
          std::initializer_list<std::size_t> spatial = {}) {
    problem_.size = sizeof problem_;
    problem_.layout = layout;
    problem_.batch = batch;
    problem_.channels = channels;
    std::size_t axis = 0;
    for (std::size_t size : spatial) {
      if (axis == 3) throw error(BATCHNORM_STATUS_SIZE, "spatial has more than 3 axes");
      // In C, 0 is an axis that is not there. An axis of no elements makes a tensor without any, as a batch of none does.
      if (size == 0) problem_.batch = 0;
      problem_.spatial[axis++] = size;
    }
  }

  // At most this many threads; 0 for as many as the pool has, 1 for the calling thread alone.
  problem &threads(std::size_t threads) {
    problem_.threads = threads;
    return *this;
  }

  // Threads of the program's own, in place of the library's pool. They stay as long as operations on the problem run.
  problem &threadpool(const batchnorm_threadpool &threadpool) {
    problem_.threadpool = &threadpool;
    return *this;
  }
  problem &threadpool(const batchnorm_threadpool &&) = delete;

  std::size_t channels() const noexcept { return problem_.channels; }

  // The elements of a tensor.
  std::size_t size() const {
    std::size_t size = 1;
    for (std::size_t axis : {problem_.batch, problem_.channels}) size = times(size, axis);
    for (std::size_t axis : problem_.spatial) size = times(size, axis == 0 ? 1 : axis);
    return size;
  }

  // The words of a mask of a tensor, a bit an element.
  std::size_t mask_len() const { return size() / 64 + (size() % 64 != 0); }
  // The samples that a batch can be split between.
  std::size_t granularity() const { return batchnorm_granularity(&problem_); }

  // With x of T and y of Y.
  template <typename T, typename Y = T>
  batchnorm_problem of() const {
    static_assert(std::is_same_v<arithmetic<T>, arithmetic<Y>>, "double goes with no other element");
    batchnorm_problem problem = problem_;
    problem.element = element<T>::value;
    problem.y_element = std::is_same_v<T, Y> ? BATCHNORM_Y_SAME : BATCHNORM_Y_F32 + element<Y>::value;
    return problem;
  }

 private:
  static std::size_t times(std::size_t a, std::size_t b) {
    if (b != 0 && a > static_cast<std::size_t>(-1) / b) {
      throw error(BATCHNORM_STATUS_OVERFLOW, "the problem has more elements than size_t can count");
    }
    return a * b;
  }

  batchnorm_problem problem_ = {};
};

// What is applied to each element in the end.
class activation {
 public:
  static constexpr activation identity() noexcept { return activation(BATCHNORM_IDENTITY); }
  static constexpr activation relu() noexcept { return activation(BATCHNORM_RELU); }
  static constexpr activation leaky_relu(double slope) noexcept { return activation(BATCHNORM_LEAKY_RELU, slope); }
  static constexpr activation clip(double lo, double hi) noexcept { return activation(BATCHNORM_CLIP, 0, lo, hi); }
  static constexpr activation hard_swish() noexcept { return activation(BATCHNORM_HARD_SWISH); }
  static constexpr activation silu() noexcept { return activation(BATCHNORM_SILU); }

  template <typename Args>
  void to(Args &args) const noexcept {
    args.activation = number_;
    args.slope = slope_;
    args.lo = lo_;
    args.hi = hi_;
  }

 private:
  constexpr explicit activation(std::uint64_t number, double slope = 0, double lo = 0, double hi = 0) noexcept
      : number_(number), slope_(slope), lo_(lo), hi_(hi) {}

  std::uint64_t number_;
  double slope_;
  double lo_;
  double hi_;
};

// The statistics of a channel.
struct state : batchnorm_state {
  state() : batchnorm_state() {}
  double mean() const { return batchnorm_mean(this); }
  double variance() const { return batchnorm_variance(this); }
  double variance_unbiased() const { return batchnorm_variance_unbiased(this); }
};
static_assert(sizeof(state) == sizeof(batchnorm_state), "an array of the one is an array of the other");

// The bytes of the sums of a part of a batch, or of several that were joined.
using part = std::vector<unsigned char>;

// All of some parts, in any order, each sample once.
inline part join(const std::vector<part> &parts) {
  std::vector<const void *> all;
  std::vector<std::size_t> lens;
  std::size_t len = 0;
  for (const part &one : parts) {
    all.push_back(one.data());
    lens.push_back(one.size());
    len += one.size();
  }
  part joined(len);
  check(batchnorm_join(parts.size(), all.data(), lens.data(), joined.data(), &len));
  joined.resize(len);
  return joined;
}

// The statistics that (joined) parts are of, of so many channels.
inline std::vector<state> states_of(const part &part, std::size_t channels) {
  std::vector<state> states(channels);
  check(batchnorm_part_states(part.data(), part.size(), channels, states.data()));
  return states;
}

namespace detail {

// A problem with the arguments of an operation, whose x holds elements of type T and whose y of type Y.
template <typename T, typename Args, typename Y = T>
class operation {
 protected:
  explicit operation(const problem &problem)
      : problem_(problem.of<T, Y>()), len_(problem.size()), mask_len_(problem.mask_len()), channels_(problem.channels()) {
    args_.size = sizeof args_;
  }

  // A wrong length is thrown by run(), so that run_among() has told the other processes before.
  template <typename Value>
  Value *of_length(const char *name, span<Value> values, std::size_t len) {
    if (values.data() != nullptr && values.size() != len && wrong_.empty()) {
      wrong_ = std::string(name) + " has length " + std::to_string(values.size()) + ", must have length " +
               std::to_string(len);
    }
    return values.data();
  }
  template <typename Value>
  Value *tensor(const char *name, span<Value> values) {
    return of_length(name, values, len_);
  }
  template <typename Value>
  Value *vector(const char *name, span<Value> values) {
    return of_length(name, values, channels_);
  }
  template <typename Value>
  Value *bits(const char *name, span<Value> words) {
    return of_length(name, words, mask_len_);
  }
  template <typename Value>
  Value *per_sample(const char *name, span<Value> values) {
    return of_length(name, values, problem_.batch);
  }

  void check_lengths() const {
    if (!wrong_.empty()) throw error(BATCHNORM_STATUS_SIZE, wrong_);
  }
  template <typename Call>
  void call(Call call) const {
    check_lengths();
    check(call(&problem_, &args_));
  }
  // Of a part, whose first sample has this number in the batch. Where a length is wrong, a call without arguments tells the others.
  template <typename Call>
  void call_among(std::uint64_t first, const batchnorm_gather &gather, Call call) const {
    Args args = wrong_.empty() ? args_ : Args{};
    args.size = sizeof args;
    args.first = first;
    args.gather = &gather;
    const batchnorm_status status = call(&problem_, &args);
    check_lengths();
    check(status);
  }

  template <typename Call>
  batchnorm::part part_of(Call call) const {
    check_lengths();
    std::size_t len = batchnorm_part_len(&problem_);
    if (len == 0) {
      throw error(BATCHNORM_STATUS_OVERFLOW, "the bytes of a part overflow");
    }
    batchnorm::part bytes(len);
    check(call(bytes.data(), &len));
    bytes.resize(len);
    return bytes;
  }

  batchnorm_problem problem_;
  std::size_t len_;
  std::size_t mask_len_;
  std::size_t channels_;
  Args args_ = {};

 private:
  std::string wrong_;
};

}  // namespace detail

// An argument that is a tensor (or has one value per channel or sample, or one bit an element): a method of its name.
#define BATCHNORM_ARGUMENT(kind, Self, type, name)   \
  Self &name(span<type> name) {                      \
    this->args_.name = this->kind(#name, name);      \
    return *this;                                    \
  }

// What follows the normalization: identity unless set.
#define BATCHNORM_ACTIVATION(Self)                              \
  Self &activation(batchnorm::activation activation) {          \
    activation.to(this->args_);                                 \
    return *this;                                               \
  }

// What is added to variances: 1e-5 unless set.
#define BATCHNORM_EPS(Self)     \
  Self &eps(double eps) {       \
    this->args_.eps = eps;      \
    return *this;               \
  }

// The statistics of each channel of x.
template <typename T>
class statistics : detail::operation<T, batchnorm_statistics_args> {
 public:
  explicit statistics(const problem &problem) : detail::operation<T, batchnorm_statistics_args>(problem) {}
  BATCHNORM_ARGUMENT(tensor, statistics, const T, x)
  BATCHNORM_ARGUMENT(vector, statistics, state, states)
  // How often each sample counts; also of a part, whose samples' they are.
  BATCHNORM_ARGUMENT(per_sample, statistics, const double, weights)
  void run() const { this->call(batchnorm_statistics); }
  // The sums of a part of a batch, whose first sample has this number in the batch.
  batchnorm::part part(std::uint64_t first) const {
    auto args = this->args_;
    args.first = first;
    return this->part_of([&](void *bytes, std::size_t *len) {
      args.part = bytes;
      args.part_len = len;
      return batchnorm_statistics(&this->problem_, &args);
    });
  }
};

// Normalization of x by its own statistics. y and residual may be of another element than x: training<bfloat16, float>.
template <typename T, typename Y = T>
class training : detail::operation<T, batchnorm_training_args, Y> {
 public:
  explicit training(const problem &problem) : detail::operation<T, batchnorm_training_args, Y>(problem) { eps(1e-5); }
  BATCHNORM_ARGUMENT(tensor, training, const T, x)
  BATCHNORM_ARGUMENT(vector, training, const arithmetic<T>, gamma)
  BATCHNORM_ARGUMENT(vector, training, const arithmetic<T>, beta)
  BATCHNORM_ARGUMENT(tensor, training, Y, y)
  BATCHNORM_ARGUMENT(vector, training, state, states)
  BATCHNORM_ARGUMENT(tensor, training, const Y, residual)
  BATCHNORM_ARGUMENT(bits, training, std::uint64_t, mask)
  BATCHNORM_ARGUMENT(per_sample, training, const double, weights)
  BATCHNORM_ACTIVATION(training)
  BATCHNORM_EPS(training)
  void run() const { this->call(batchnorm_training); }
  // Where x is a part of a batch, whose first sample has this number in the batch, and other processes have the others.
  void run_among(std::uint64_t first, const batchnorm_gather &gather) const {
    this->call_among(first, gather, batchnorm_training);
  }
};

// Normalization of x by a given mean and variance; y and residual as of training.
template <typename T, typename Y = T>
class inference : detail::operation<T, batchnorm_inference_args, Y> {
 public:
  explicit inference(const problem &problem) : detail::operation<T, batchnorm_inference_args, Y>(problem) { eps(1e-5); }
  BATCHNORM_ARGUMENT(tensor, inference, const T, x)
  // Of a batch that x is a part of, in place of mean and var.
  BATCHNORM_ARGUMENT(vector, inference, const state, states)
  BATCHNORM_ARGUMENT(vector, inference, const arithmetic<T>, mean)
  BATCHNORM_ARGUMENT(vector, inference, const arithmetic<T>, var)
  BATCHNORM_ARGUMENT(vector, inference, const arithmetic<T>, gamma)
  BATCHNORM_ARGUMENT(vector, inference, const arithmetic<T>, beta)
  BATCHNORM_ARGUMENT(tensor, inference, Y, y)
  BATCHNORM_ARGUMENT(tensor, inference, const Y, residual)
  BATCHNORM_ARGUMENT(bits, inference, std::uint64_t, mask)
  BATCHNORM_ACTIVATION(inference)
  BATCHNORM_EPS(inference)
  void run() const { this->call(batchnorm_inference); }
};

// The gradients of training (with its states) or of inference (with its mean and var). dy and dz are of y's element.
template <typename T, typename Y = T>
class backward : detail::operation<T, batchnorm_backward_args, Y> {
 public:
  explicit backward(const problem &problem) : detail::operation<T, batchnorm_backward_args, Y>(problem) { eps(1e-5); }
  BATCHNORM_ARGUMENT(tensor, backward, const T, x)
  BATCHNORM_ARGUMENT(tensor, backward, const Y, dy)
  BATCHNORM_ARGUMENT(vector, backward, const state, states)
  BATCHNORM_ARGUMENT(vector, backward, const arithmetic<T>, mean)
  BATCHNORM_ARGUMENT(vector, backward, const arithmetic<T>, var)
  BATCHNORM_ARGUMENT(vector, backward, const arithmetic<T>, gamma)
  BATCHNORM_ARGUMENT(tensor, backward, T, dx)
  BATCHNORM_ARGUMENT(vector, backward, arithmetic<T>, dgamma)
  BATCHNORM_ARGUMENT(vector, backward, arithmetic<T>, dbeta)
  BATCHNORM_ARGUMENT(vector, backward, arithmetic<T>, dmean)
  BATCHNORM_ARGUMENT(vector, backward, arithmetic<T>, dvar)
  BATCHNORM_ARGUMENT(vector, backward, const arithmetic<T>, beta)
  BATCHNORM_ARGUMENT(bits, backward, const std::uint64_t, mask)
  BATCHNORM_ARGUMENT(tensor, backward, Y, dz)
  BATCHNORM_ARGUMENT(per_sample, backward, const double, weights)
  BATCHNORM_ACTIVATION(backward)
  BATCHNORM_EPS(backward)
  // The joined sums of all parts of the batch that x is a part of, which have to stay where they are.
  backward &sums(const batchnorm::part &sums) {
    // No bytes are an error, where null would be no sums.
    static const unsigned char none = 0;
    this->args_.sums = sums.empty() ? &none : sums.data();
    this->args_.sums_len = sums.size();
    return *this;
  }
  void run() const { this->call(batchnorm_backward); }
  // The sums of a part of a batch, whose first sample has this number in the batch; states are those of the whole.
  batchnorm::part part(std::uint64_t first) const {
    auto args = this->args_;
    args.first = first;
    return this->part_of([&](void *bytes, std::size_t *len) {
      args.part = bytes;
      args.part_len = len;
      return batchnorm_backward(&this->problem_, &args);
    });
  }
  // As of training.
  void run_among(std::uint64_t first, const batchnorm_gather &gather) const {
    this->call_among(first, gather, batchnorm_backward);
  }
};

// Takes the states of a batch into a running mean and variance: by momentum 0.1 unless told otherwise, unbiased.
template <typename T>
class update_running : detail::operation<T, batchnorm_update_running_args> {
 public:
  explicit update_running(const problem &problem) : detail::operation<T, batchnorm_update_running_args>(problem) {
    momentum(0.1).unbiased(true);
  }
  BATCHNORM_ARGUMENT(vector, update_running, const state, states)
  BATCHNORM_ARGUMENT(vector, update_running, arithmetic<T>, mean)
  BATCHNORM_ARGUMENT(vector, update_running, arithmetic<T>, var)
  update_running &decay(double factor) { return rule(BATCHNORM_DECAY, factor, 0); }
  update_running &momentum(double factor) { return rule(BATCHNORM_MOMENTUM, factor, 0); }
  // The mean over all batches, of which this many came before.
  update_running &cumulative(std::uint64_t batches) { return rule(BATCHNORM_CUMULATIVE, 0.0, batches); }
  update_running &unbiased(bool unbiased) {
    this->args_.unbiased = unbiased ? 1 : 0;
    return *this;
  }
  void run() const { this->call(batchnorm_update_running); }

 private:
  update_running &rule(std::uint32_t rule, double factor, std::uint64_t batches) {
    this->args_.rule = rule;
    this->args_.factor = factor;
    this->args_.batches = batches;
    return *this;
  }
};

// One step of gradient descent on gamma or beta.
template <typename T>
class step : detail::operation<T, batchnorm_step_args> {
 public:
  explicit step(const problem &problem) : detail::operation<T, batchnorm_step_args>(problem) {}
  BATCHNORM_ARGUMENT(vector, step, const arithmetic<T>, gradient)
  BATCHNORM_ARGUMENT(vector, step, arithmetic<T>, parameter)
  step &lr(double lr) {
    this->args_.lr = lr;
    return *this;
  }
  void run() const { this->call(batchnorm_step); }
};

// Batch renormalization: r and d of each channel within these limits, and the gamma and beta that inference and backward by the
// batch's states take. dgamma of backward then becomes r * dgamma + d * dbeta.
template <typename T>
class renorm : detail::operation<T, batchnorm_renorm_args> {
 public:
  renorm(const problem &problem, double r_max, double d_max) : detail::operation<T, batchnorm_renorm_args>(problem) {
    this->args_.r_max = r_max;
    this->args_.d_max = d_max;
    eps(1e-5);
  }
  BATCHNORM_ARGUMENT(vector, renorm, const state, states)
  BATCHNORM_ARGUMENT(vector, renorm, const arithmetic<T>, mean)
  BATCHNORM_ARGUMENT(vector, renorm, const arithmetic<T>, var)
  BATCHNORM_ARGUMENT(vector, renorm, const arithmetic<T>, gamma)
  BATCHNORM_ARGUMENT(vector, renorm, const arithmetic<T>, beta)
  BATCHNORM_ARGUMENT(vector, renorm, double, r)
  BATCHNORM_ARGUMENT(vector, renorm, double, d)
  BATCHNORM_ARGUMENT(vector, renorm, arithmetic<T>, renorm_gamma)
  BATCHNORM_ARGUMENT(vector, renorm, arithmetic<T>, renorm_beta)
  BATCHNORM_EPS(renorm)
  void run() const { this->call(batchnorm_renorm); }
};

// Folds inference by a mean and a variance into the weights and the bias of the layer before, whose output channels the
// problem's are. `outer` and `inner` are the products of the weights' axes before and behind these, 1 of none; which groups
// count is said in batchnorm.h. The bias may be of another element than the weights: fold<bfloat16, float>.
template <typename T, typename B = T>
class fold : detail::operation<T, batchnorm_fold_args, B> {
 public:
  fold(const problem &problem, std::size_t outer, std::size_t inner, std::size_t groups = 1)
      : detail::operation<T, batchnorm_fold_args, B>(problem) {
    this->args_.outer = outer;
    this->args_.inner = inner;
    this->args_.groups = groups;
    // In C, 0 is an axis that is not there.
    const std::size_t rows = outer == 0 ? 1 : outer, channels = problem.channels() / (groups == 0 ? 1 : groups);
    this->len_ = batchnorm::problem(nchw, rows, channels, {inner == 0 ? 1 : inner}).size();
    eps(1e-5);
  }
  BATCHNORM_ARGUMENT(vector, fold, const arithmetic<T>, mean)
  BATCHNORM_ARGUMENT(vector, fold, const arithmetic<T>, var)
  BATCHNORM_ARGUMENT(vector, fold, const arithmetic<T>, gamma)
  BATCHNORM_ARGUMENT(vector, fold, const arithmetic<T>, beta)
  BATCHNORM_ARGUMENT(tensor, fold, T, weight)
  BATCHNORM_ARGUMENT(vector, fold, B, bias)
  BATCHNORM_EPS(fold)
  void run() const { this->call(batchnorm_fold); }
};

#undef BATCHNORM_ARGUMENT
#undef BATCHNORM_ACTIVATION
#undef BATCHNORM_EPS

// Takes what `from` has seen into `into`, channel by channel.
inline void merge(span<state> into, span<const state> from) {
  if (into.size() != from.size()) {
    throw error(BATCHNORM_STATUS_SIZE, "from has length " + std::to_string(from.size()) + ", must have length " +
                                           std::to_string(into.size()));
  }
  check(batchnorm_merge(into.size(), into.data(), from.data()));
}

// Starts the pool, once: batchnorm_set_threads.
inline void set_threads(std::size_t threads) { check(batchnorm_set_threads(threads)); }

}  // namespace batchnorm

#endif  // BATCHNORM_HPP
