"""The outlier metrics of evenkeel's docs/metrics.md in PyTorch, summed over batches at one site.

Written to be fast on a CPU: rows pass in chunks that stay in cache, through buffers that are used again, and each
product of a chunk feeds several metrics. Sums over a chunk are float32, which PyTorch adds pairwise; sums over chunks
are float64. Variances come from deviations, of channels from a mean of the first sequence and of tokens from their own,
so that a large constant channel keeps its spread.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import torch

CHUNK = 1 << 19  # entries
SMALLEST_SCALE = 1e-8


def ratio(a, b):
    """a / b, or None where it is undefined."""
    return a / b if b != 0 and math.isfinite(a / b) else None


def chunks(x_nd):
    """Views of whole rows, about `CHUNK` entries each, with the rows that they are."""
    rows = max(1, CHUNK // x_nd.shape[1])
    for first in range(0, x_nd.shape[0], rows):
        yield slice(first, first + rows), x_nd[first : first + rows]


class Scratch:
    """Buffers for a chunk, shared by all sites, and threads for medians."""

    def __init__(self, medians):
        self.flat = [torch.empty(0), torch.empty(0)]
        self.medians = medians
        self.pool = ThreadPoolExecutor(torch.get_num_threads())

    def like(self, x_nd):
        """Two buffers of the shape of `x_nd`; what they held is lost."""
        if self.flat[0].numel() < x_nd.numel():
            self.flat = [torch.empty(x_nd.numel()) for _ in self.flat]
        return [flat[: x_nd.numel()].view(x_nd.shape) for flat in self.flat]

    def row_medians(self, sizes_nd):
        """Lower median of each row, whose order is lost."""
        if self.medians == "torch":
            return sizes_nd.median(dim=1).values
        # NumPy selects with vector instructions and lets other threads run meanwhile; torch.median selects through
        # an index, some ten times slower.
        middle = (sizes_nd.shape[1] - 1) // 2
        parts = sizes_nd.numpy()
        list(self.pool.map(lambda part: part.partition(middle, axis=1), self.split(parts)))
        return torch.from_numpy(parts[:, middle].copy())

    def split(self, rows):
        each = -(-len(rows) // torch.get_num_threads())
        return [rows[first : first + each] for first in range(0, len(rows), each)]


def lower_median(sizes):
    """Of all entries."""
    flat = sizes.flatten().numpy()
    middle = (flat.size - 1) // 2
    flat.partition(middle)
    return float(flat[middle])


class SiteSums:
    """Everything but the largest entries, which need all sites together."""

    def __init__(self, width, gram_tokens):
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64)
        self.width, self.tokens, self.sequences = width, 0, 0
        self.shift = None
        self.shifted, self.deviations, self.centred, self.directions = (zeros(width) for _ in range(4))
        self.direction_rows = 0
        self.mmr = self.excess = self.elementwise = self.inf_norm = self.max_abs = 0.0
        self.mmr_rows = self.mmr_skipped = self.excess_rows = 0
        self.gram_left, self.gram_tokens = gram_tokens, 0
        self.gram = zeros(width, width) if gram_tokens else None
        self.token_fourths = 0.0

    def add(self, x_btd, scratch):
        """Adds a batch; returns the largest |x| of each token."""
        b, t, d = x_btd.shape
        if self.shift is None:
            self.shift = x_btd[0].mean(0)
        x_nd = x_btd.reshape(b * t, d)
        mean, second, third, fourth, peak, median = torch.empty(6, b * t).unbind()
        for rows, x in chunks(x_nd):
            y, z = scratch.like(x)
            self.by_token(x, y, z, [part[rows] for part in (mean, second, third, fourth)])
            self.by_channel(x, y, mean[rows], second[rows])
            torch.abs(x, out=y)
            torch.amax(y, dim=1, out=peak[rows])
            median[rows] = scratch.row_medians(y)
        mean, second, third, fourth, wide_peak, median = (
            part.double() for part in (mean, second, third, fourth, peak, median)
        )
        self.tokens += b * t
        self.sequences += b
        self.add_ratios(wide_peak, median)
        self.add_excess(mean, second, third, fourth)
        self.add_sequences(b, mean, second, third, fourth, wide_peak)
        return peak

    def by_token(self, x, y, z, sums):
        """Means of the rows and sums of powers of the deviations from them; what they leave in each channel."""
        mean, second, third, fourth = sums
        torch.mean(x, dim=1, out=mean)
        torch.sub(x, mean[:, None], out=y)
        torch.square(y, out=z)
        self.centred += z.sum(0)
        torch.sum(z, dim=1, out=second)
        torch.sum(y.mul_(z), dim=1, out=third)
        torch.sum(z.square_(), dim=1, out=fourth)

    def by_channel(self, x, y, mean, second):
        torch.sub(x, self.shift, out=y)
        self.shifted += y.sum(0)
        self.deviations += y.square_().sum(0)
        squares = second + self.width * mean.square()
        self.directions += x.t() @ torch.where(squares > 0, squares.rsqrt(), 0)
        self.direction_rows += int((squares > 0).sum())

    def add_ratios(self, peak, median):
        kept = median != 0
        self.mmr += float((peak[kept] / median[kept]).sum())
        self.mmr_rows += int(kept.sum())
        self.mmr_skipped += int((~kept).sum())

    def add_excess(self, mean, second, third, fourth):
        """Fourth moments about 0 follow from those about the mean."""
        d = self.width
        about_zero = fourth + 4 * mean * third + 6 * mean.square() * second + d * mean**4
        kept = second > 0
        variance = second[kept] / max(d - 1, 1)
        self.excess += float((about_zero[kept] / d / variance.square() - 3).clamp_(min=0).sum())
        self.excess_rows += int(kept.sum())

    def add_sequences(self, b, mean, second, third, fourth, peak):
        """Moments of a sequence about its mean, from those of its tokens about theirs."""
        d = self.width
        mean, second, third, fourth = (part.view(b, -1) for part in (mean, second, third, fourth))
        gap = mean - mean.mean(1, keepdim=True)
        entries = mean.shape[1] * d
        pooled = (fourth + 4 * gap * third + 6 * gap.square() * second + d * gap**4).sum(1) / entries
        variance = (second + d * gap.square()).sum(1) / max(entries - 1, 1)
        self.elementwise += float((pooled / (variance.square() + 1e-6)).sum())
        largest = peak.view(b, -1).amax(1)
        self.inf_norm += float(largest.sum())
        self.max_abs = max(self.max_abs, float(largest.max()))

    def add_gram(self, x_btd):
        """Adds to the Gram matrix as many tokens as are still wanted."""
        x_nd = x_btd.reshape(-1, self.width)[: self.gram_left]
        if len(x_nd) == 0:
            return
        self.gram_left -= len(x_nd)
        self.gram_tokens += len(x_nd)
        self.gram += x_nd.t() @ x_nd
        self.token_fourths += float(torch.linalg.vector_norm(x_nd, dim=1).double().pow(4).sum())

    def metrics(self):
        n, d = self.tokens, self.width
        gap = self.shifted / n
        deviations = (self.deviations - n * gap.square()).clamp_(min=0)
        mean = self.shift.double() + gap
        squares = deviations + n * mean.square()
        total = float(squares.sum())
        norm = float(self.directions.square().sum())
        m = self.direction_rows
        return {
            "kurtosis": neuron_kurtosis(squares),
            "kurtosis_centred": neuron_kurtosis(self.centred),
            "kurtosis_mean_removed": neuron_kurtosis(deviations),
            "kurtosis_elementwise": ratio(self.elementwise, self.sequences),
            "kurtosis_excess_token": ratio(self.excess, self.excess_rows),
            "mmr": ratio(self.mmr, self.mmr_rows),
            "mmr_skipped": self.mmr_skipped,
            "rms": math.sqrt(total / (n * d)),
            "max_abs": self.max_abs,
            "inf_norm": self.inf_norm / self.sequences,
            "input_corr_mean": ratio(float((n * mean).square().sum()) - total, total * (n - 1)),
            "input_cos_mean": ratio(norm - m, m * (m - 1)),
        } | self.gram_metrics()

    def gram_metrics(self):
        names = ["input_corr_rms", "feature_corr_rms", "effective_rank"]
        trace = float(self.gram.trace()) if self.gram_tokens else 0.0
        if trace == 0:
            return dict.fromkeys(names)
        n, d = self.gram_tokens, self.width
        whole = float(self.gram.square().sum())
        across = whole - float(self.gram.diagonal().square().sum())
        figure = lambda squares, size: ratio(math.sqrt(max(squares, 0.0) / max(size * (size - 1), 1)) * size, trace)
        input_rms, feature_rms = figure(whole - self.token_fourths, n), figure(across, d)
        return dict(zip(names, [input_rms, feature_rms, trace**2 / whole]))


def neuron_kurtosis(squares):
    """Eq. 1 of arXiv 2405.19279 from the channels' sums of squares."""
    return ratio(float(squares.square().mean()), float(squares.mean()) ** 2)


def rounded_error(x, scale, zero, low, high, out):
    """Sum of squared errors of rounding `x` to steps of `scale`, at levels low - zero to high - zero."""
    torch.div(x, scale, out=out)
    out.round_()
    torch.clamp(out, low - zero, high - zero, out=out)
    out.mul_(scale).sub_(x)
    return float(torch.linalg.vector_norm(out)) ** 2


def asymmetric(low, high):
    """(scale, zero) of an unsigned 8-bit grid from the smallest and largest value, 0 included."""
    low, high = low.clamp(max=0), high.clamp(min=SMALLEST_SCALE)
    scale = (high - low) / 255
    return scale.clamp(min=SMALLEST_SCALE), (-low / scale).round_().clamp_(0, 255)


def activation_errors(x_btd, scratch):
    """Relative errors of 8-bit rounding with one step for all, one a token, one a channel."""
    x_nd = x_btd.reshape(-1, x_btd.shape[-1])
    low_n, high_n = torch.empty(2, len(x_nd)).unbind()
    low_d, high_d = torch.full((x_nd.shape[1],), math.inf), torch.full((x_nd.shape[1],), -math.inf)
    for rows, x in chunks(x_nd):
        torch.amin(x, dim=1, out=low_n[rows])
        torch.amax(x, dim=1, out=high_n[rows])
        torch.minimum(low_d, x.amin(0), out=low_d)
        torch.maximum(high_d, x.amax(0), out=high_d)
    of_all = asymmetric(low_d.min(), high_d.max())
    token_scale, token_zero = (part[:, None] for part in asymmetric(low_n, high_n))
    of_channels = asymmetric(low_d, high_d)
    errors, size = [0.0, 0.0, 0.0], 0.0
    for rows, x in chunks(x_nd):
        y, _ = scratch.like(x)
        for i, (scale, zero) in enumerate([of_all, (token_scale[rows], token_zero[rows]), of_channels]):
            errors[i] += rounded_error(x, scale, zero, 0, 255, y)
        size += float(torch.linalg.vector_norm(x)) ** 2
    figures = [math.sqrt(e / size) if size > 0 else None for e in errors]
    return dict(zip(["int8_error", "int8_error_token", "int8_error_channel"], figures))


def weight_errors(w, is_table=False):
    """The same of a matrix [d_out, d_in], symmetric: one step for all, one an output channel. The rows of a table of
    embeddings are tokens, its columns channels."""

    def error(peak, low):
        unsigned = low >= 0
        top, bottom = torch.where(unsigned, 255.0, 127.0), torch.where(unsigned, 0.0, -128.0)
        return rounded_error(w, (peak / top).clamp(min=SMALLEST_SCALE), 0, bottom, top, torch.empty_like(w))

    size = float(torch.linalg.vector_norm(w)) ** 2
    peak, low = w.abs().amax(1, keepdim=True), w.amin(1, keepdim=True)
    figures = [math.sqrt(error(*extremes) / size) for extremes in [(peak.max(), low.min()), (peak, low)]]
    if not is_table:
        return {"int8_error": figures[0], "int8_error_token": None, "int8_error_channel": figures[1]}
    by_column = math.sqrt(error(w.abs().amax(0, keepdim=True), w.amin()) / size)
    return {"int8_error": figures[0], "int8_error_token": figures[1], "int8_error_channel": by_column}


def weight_figures(w):
    mean = w.mean()
    squares = (w - mean).square_()
    second = float(squares.mean())
    rms, peak = math.sqrt(second + float(mean) ** 2), float(w.abs().max())
    kurtosis = ratio(float(squares.square_().mean()), second**2)
    return {"rms": rms, "max_abs": peak, "max_over_rms": ratio(peak, rms), "kurtosis_entries": kurtosis}
