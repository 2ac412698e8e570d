// Runs the kernels of arcs and of the additive joiner on random problems in memory that ends where
// their arrays do. Built with -fsanitize=address: see test_cpu_kernels.py.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "arcs_backward.h"
#include "arcs_forward.h"
#include "factored_backward.h"
#include "factored_forward.h"
#include "random_problems.h"

namespace jax_rnnt::JAX_RNNT_TARGET {
namespace {

// Some are 0 in runs.
template <class T>
std::vector<T> random_weights(int64_t size) {
  std::vector<T> weights(size);
  const int64_t run = 1 + up_to(60);
  for (int64_t i = 0; i < size; ++i) weights[i] = (i / run) % 3 == 0 ? T(0) : T(up_to(9)) / 10;
  return weights;
}

std::vector<int32_t> random_labels(int64_t size, int64_t classes) {
  std::vector<int32_t> labels(size);
  for (int32_t& label : labels) label = int32_t(up_to(classes + 1)) - 1;  // also bad ones
  return labels;
}

template <class In>
void run_arcs(int64_t batch, int64_t frames, int64_t cells, int64_t labels, int64_t classes) {
  using T = Accumulator<In>;
  const int64_t rows = batch * frames * cells;
  auto logits = random_scores<In>(rows * classes);
  const auto ids = random_labels(batch * labels, classes);
  const auto bounds = random_bounds(batch, frames, labels);
  std::vector<T> blank(rows), label(rows), denominators(rows), cotangents(batch, T(0.7));
  const auto blank_weights = random_weights<T>(rows), label_weights = random_weights<T>(rows);
  const int64_t blank_id = up_to(classes - 1);
  const Normalization normalization{up_to(2)};
  const ArcsForward forward{.batch = batch,
                            .frames = frames,
                            .cells = cells,
                            .labels_per_utterance = labels,
                            .classes = classes,
                            .blank_id = blank_id,
                            .normalization = normalization,
                            .logits = logits.data(),
                            .labels = ids.data(),
                            .bounds = bounds.data(),
                            .blank = blank.data(),
                            .label = label.data(),
                            .denominators = denominators.data()};
  const bool single_rows = frames == 1 && cells == 1 && labels == 1;
  if (single_rows) arcs_forward_rows<In>(forward, 0, batch);
  for (int64_t i = 0; i < batch * frames; ++i) arcs_forward_frame<In>(forward, i);

  std::vector<In> gradient(logits.size());
  ArcsBackward backward{.batch = batch,
                        .frames = frames,
                        .cells = cells,
                        .labels_per_utterance = labels,
                        .classes = classes,
                        .blank_id = blank_id,
                        .normalization = normalization,
                        .clamp = one_in(3) ? 0.1 : 0.0,
                        .logits = logits.data(),
                        .labels = ids.data(),
                        .denominators = denominators.data(),
                        .blank_weights = blank_weights.data(),
                        .label_weights = label_weights.data(),
                        .cotangents = cotangents.data(),
                        .gradient = gradient.data(),
                        .gradient_dtype = {}};
  const auto run_backward = [&](auto out) {
    using Out = decltype(out);
    const bool hat = normalization == Normalization::kHat, clamp = backward.clamp > 0;
    const auto run = hat     ? clamp ? arcs_backward_frames<true, true, In, Out>
                                     : arcs_backward_frames<true, false, In, Out>
                     : clamp ? arcs_backward_frames<false, true, In, Out>
                             : arcs_backward_frames<false, false, In, Out>;
    const int64_t middle = up_to(batch * frames);
    run(backward, middle, batch * frames);
    run(backward, 0, middle);
  };
  run_backward(In{});
  if constexpr (std::is_same_v<In, float>) {
    std::vector<BFloat16> narrow(logits.size());
    backward.gradient = narrow.data();
    run_backward(BFloat16{});
  }
  backward.gradient = logits.data();
  run_backward(In{});
  if (std::memcmp(gradient.data(), logits.data(), gradient.size() * sizeof(In)) != 0) {
    std::printf("%lld x %lld x %lld x %lld: another gradient in place of the logits\n",
                (long long)batch, (long long)frames, (long long)cells, (long long)classes);
    std::exit(1);
  }
}

template <class In>
void run_factored(int64_t batch, int64_t frames, int64_t cells, int64_t classes) {
  using T = Accumulator<In>;
  const auto am = random_scores<In>(batch * frames * classes);
  const auto lm = random_scores<In>(batch * cells * classes);
  const auto labels = random_labels(batch * (cells - 1), classes);
  const auto bounds = random_bounds(batch, frames, cells - 1);
  const int64_t rows = batch * frames * cells, blank_id = up_to(classes - 1);
  const bool smoothed = one_in(3);
  const Normalization normalization = smoothed ? Normalization::kSoftmax : Normalization{up_to(2)};
  std::vector<T> blank(rows), label(rows), denominators(rows);
  std::vector<T> am_top(batch * frames), lm_top(batch * cells), cotangents(batch, T(0.7));
  const auto average = random_scores<T>(batch * classes);
  const auto blank_scores = random_scores<T>(batch * cells);
  const auto label_scores = random_scores<T>(batch * cells);
  std::vector<T> encoder_logs(batch * frames);
  const Smoothing smoothing =
      smoothed ? Smoothing{0.7, 0.2, average.data(), encoder_logs.data()} : Smoothing{};
  const auto layout = factored_forward_layout(cells, classes);
  std::vector<T> workspace(batch * layout.total);
  const FactoredForward forward{.batch = batch,
                                .frames = frames,
                                .cells = cells,
                                .classes = classes,
                                .blank_id = blank_id,
                                .normalization = normalization,
                                .am = am.data(),
                                .lm = lm.data(),
                                .labels = labels.data(),
                                .bounds = bounds.data(),
                                .blank = blank.data(),
                                .label = label.data(),
                                .denominators = denominators.data(),
                                .am_top = am_top.data(),
                                .lm_top = lm_top.data(),
                                .workspace = workspace.data(),
                                .workspace_elements = layout.total,
                                .smoothing = smoothing,
                                .blank_scores = blank_scores.data(),
                                .label_scores = label_scores.data()};
  const int64_t frame_blocks = (frames + kFramesOfBlock - 1) / kFramesOfBlock;
  const int64_t position_blocks = layout.positions / kPositions;
  for (int64_t i = 0; i < batch * position_blocks; ++i) factored_positions_block<In>(forward, i);
  for (int64_t i = 0; i < batch * frame_blocks; ++i) factored_frames_block<In>(forward, i);

  const auto blank_weights = random_weights<T>(rows), label_weights = random_weights<T>(rows);
  std::vector<In> am_gradient(am.size()), lm_gradient(smoothed ? 0 : lm.size());
  std::vector<T> smoothed_lm_gradient(smoothed ? lm.size() : 0), average_gradient(average.size());
  std::vector<T> blank_of_position(batch * cells), label_of_position(batch * cells);
  void* const lm_out = smoothed ? static_cast<void*>(smoothed_lm_gradient.data())
                                : static_cast<void*>(lm_gradient.data());
  const auto sums = factored_backward_layout(frames, cells, classes, sizeof(T));
  workspace.assign(batch * sums.total, T(0));
  workspace.shrink_to_fit();
  const FactoredBackward backward{.batch = batch,
                                  .frames = frames,
                                  .cells = cells,
                                  .classes = classes,
                                  .blank_id = blank_id,
                                  .normalization = normalization,
                                  .am = am.data(),
                                  .lm = lm.data(),
                                  .labels = labels.data(),
                                  .denominators = denominators.data(),
                                  .am_top = am_top.data(),
                                  .lm_top = lm_top.data(),
                                  .blank_weights = blank_weights.data(),
                                  .label_weights = label_weights.data(),
                                  .cotangents = cotangents.data(),
                                  .am_gradient = am_gradient.data(),
                                  .lm_gradient = lm_out,
                                  .workspace = workspace.data(),
                                  .workspace_elements = sums.total,
                                  .smoothing = smoothing,
                                  .average_gradient = average_gradient.data(),
                                  .blank_of_position = blank_of_position.data(),
                                  .label_of_position = label_of_position.data()};
  for (int64_t i = 0; i < batch; ++i) factored_sums_utterance<In>(backward, i);
  for (int64_t i = 0; i < batch * sums.blocks; ++i) factored_classes_block<In>(backward, i);
}

template <class In>
void run(int problems) {
  const auto classes = [] { return 1 + (one_in(4) ? up_to(2500) : up_to(80)); };
  for (int i = 0; i < problems; ++i) {
    const int64_t frames = 1 + up_to(7), cells = 1 + up_to(50);
    // As many labels as cells: a band.
    run_arcs<In>(1 + up_to(2), frames, cells, one_in(4) ? cells : cells - 1, classes());
    run_arcs<In>(1 + up_to(90), 1, 1, 1, classes());
    run_factored<In>(1 + up_to(2), 1 + up_to(59), 1 + (one_in(4) ? up_to(160) : up_to(20)),
                     1 + (one_in(3) ? up_to(300) : up_to(40)));
  }
  // More than is written through the caches.
  run_arcs<In>(1, kMostCached / 25000 / sizeof(In) + 2, 5, 4, 5003);
  run_arcs<In>(1, kMostCached / 1500 / sizeof(In) + 2, 50, 49, 31);
}

}  // namespace
}  // namespace jax_rnnt::JAX_RNNT_TARGET

int main() {
  using namespace jax_rnnt::JAX_RNNT_TARGET;
  run<float>(200);
  run<BFloat16>(100);
  run<double>(100);
}
