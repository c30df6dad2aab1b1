// Trains on a small batch and normalizes by the running statistics, in C++.

#include <iostream>
#include <stdexcept>
#include <vector>

#include "batchnorm.h"

// What a call returns, as an exception.
static void check(batchnorm_status status) {
  if (status == BATCHNORM_STATUS_OK) return;
  std::vector<char> message(batchnorm_last_message(nullptr, 0));
  batchnorm_last_message(message.data(), message.size());
  throw std::runtime_error(message.data());
}

int main() try {
  // 2 samples of 1 channel of 2x2, in NCHW.
  const std::vector<float> x = {1, 3, 1, 3, 1, 3, 1, 3};
  const batchnorm_problem problem = {BATCHNORM_NCHW, 0, 2, 1, {1, 2, 2}};
  const batchnorm_update update = {BATCHNORM_CUMULATIVE, 0, 0.0};
  std::vector<float> y(x.size());
  batchnorm_state state;
  float mean = 0, var = 1;

  check(batchnorm_forward_training_f32(&problem, x.data(), nullptr, nullptr, 1e-5, y.data(), &state));
  check(batchnorm_update_running_f32(1, &update, 0, &state, &mean, &var));
  check(batchnorm_forward_inference_f32(&problem, x.data(), &mean, &var, nullptr, nullptr, 1e-5, y.data()));
  std::cout << "running mean " << mean << ", variance " << var << "; y[0] " << y[0] << '\n';
} catch (const std::exception &error) {
  std::cerr << error.what() << '\n';
  return 1;
}
