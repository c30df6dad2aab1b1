// Trains on a small batch and normalizes by the running statistics, with a ReLU, in C++.

#include <iostream>
#include <vector>

#include "batchnorm.hpp"

int main() try {
  // 2 samples of 1 channel of 2x2, in NCHW.
  const batchnorm::problem problem(batchnorm::nchw, 2, 1, {2, 2});
  const std::vector<float> x = {1, 3, 1, 3, 1, 3, 1, 3};
  std::vector<float> y(x.size()), mean = {0}, var = {1};
  std::vector<batchnorm::state> states(1);

  batchnorm::training<float>(problem).x(x).y(y).states(states).run();
  batchnorm::update_running<float>(problem).cumulative(0).unbiased(false).states(states).mean(mean).var(var).run();
  const auto relu = batchnorm::activation::relu();
  batchnorm::inference<float>(problem).x(x).mean(mean).var(var).activation(relu).y(y).run();
  std::cout << "running mean " << mean[0] << ", variance " << var[0] << "; y " << y[0] << ", " << y[1] << '\n';
} catch (const batchnorm::error &error) {
  std::cerr << error.what() << '\n';
  return 1;
}
