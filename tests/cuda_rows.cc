// Rows of cuda/rows.h on the CPU: how they are found, and how lanes load them wherever they start.
#include "../cuda/rows.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

using namespace jax_rnnt::cuda;

namespace {

void check(bool good, const char* what) {
  if (good) return;
  std::printf("wrong: %s\n", what);
  std::exit(1);
}

void test_divisors() {
  std::vector<uint32_t> numbers{1, 2, 3, 5, 6, 7, 10, 28, 101, 641, 1000, 65535, 65537, 6700417};
  for (int bit = 2; bit < 32; ++bit) {
    for (uint32_t near : {-1, 0, 1}) numbers.push_back((1u << bit) + near);
  }
  numbers.push_back(UINT32_MAX);
  for (uint32_t divisor : numbers) {
    const Divisor by(divisor);
    const auto check_quotient = [&](uint32_t number) {
      check(by.quotient(number) == number / divisor, "quotient");
    };
    for (uint32_t number : numbers) {
      for (uint32_t near : {-1, 0, 1}) {
        check_quotient(number + near);
        check_quotient(number * divisor + near);
      }
    }
  }
}

void test_cells() {
  for (int64_t frames : {int64_t{1}, int64_t{3}, int64_t{7000}, int64_t{1} << 32}) {
    const int64_t batch = 5, cells = 11;
    const Cells rows(batch, frames, cells);
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t t : {int64_t{0}, frames / 2, frames - 1}) {
        for (int64_t u = 0; u < cells; ++u) {
          const Cell cell = rows.locate((b * frames + t) * cells + u);
          check(cell.batch == b && cell.t == t && cell.u == u, "cell");
        }
      }
    }
  }
}

// Every class is loaded once. There is nothing behind the row, as AddressSanitizer sees to.
template <class In, int kGroup>
void test_row(int offset, int classes) {
  const std::unique_ptr<In[]> buffer(new In[offset + classes]);
  In* row = buffer.get() + offset;
  const auto number = [](int index) { return static_cast<float>(index % 250); };
  for (int index = 0; index < classes; ++index) narrow(number(index), row[index]);

  std::vector<int> times(classes);
  const auto loaded_class = [&](int index, Accumulator<In> value) {
    check(0 <= index && index < classes && value == number(index), "class");
    ++times[index];
  };
  const RowParts<In> parts(row, classes);
  const int in_steps = vectors_in_steps<kGroup>(parts.vectors);
  for (int lane = 0; lane < kGroup; ++lane) {
    for (int begin = 0; begin <= in_steps; begin += kStep<kGroup>) {
      Loaded<In, kGroup> loaded;
      if (begin < in_steps) {
        loaded.load_step(row, parts, begin, lane);
      } else {
        loaded.load_rest(row, parts, begin, lane);
      }
      check(loaded.vectors_here <= kVectorsInFlight, "vectors of a lane");
      check(loaded.singles_here <= kMostSingles<In, kGroup>, "single elements of a lane");
      for (int k = 0; k < loaded.vectors_here; ++k) {
        Accumulator<In> x[kVectorSize<In>];
        widen(loaded.vectors[k], x);
        const int first = parts.class_of_vector(begin + k * kGroup + lane);
        for (int j = 0; j < kVectorSize<In>; ++j) loaded_class(first + j, x[j]);
      }
      for (int k = 0; k < loaded.singles_here; ++k) {
        loaded_class(parts.class_of_single(k * kGroup + lane), widen(loaded.singles[k]));
      }
    }
  }
  for (int count : times) check(count == 1, "times that a class is loaded");
}

template <class In>
void test_rows() {
  for (int offset = 0; offset < kVectorSize<In>; ++offset) {
    for (int classes = 1; classes < 300; ++classes) {
      test_row<In, 1>(offset, classes);
      test_row<In, 2>(offset, classes);
      test_row<In, 4>(offset, classes);
      test_row<In, 8>(offset, classes);
      test_row<In, kWarp>(offset, classes);
    }
    test_row<In, 8>(offset, 2053);
    test_row<In, kWarp>(offset, 5003);
  }
}

}  // namespace

int main() {
  test_divisors();
  test_cells();
  test_rows<float>();
  test_rows<double>();
  test_rows<__nv_bfloat16>();
  test_rows<__half>();
  std::printf("all passed\n");
}
