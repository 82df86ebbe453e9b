using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using Megatron.Compute.TensorParallel;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>A kernel, its twin and their arguments of one shape.</summary>
/// <param name="arguments">The scope that owns the arguments.</param>
/// <param name="tables">Arguments that no scope owns.</param>
internal sealed class KernelWork(DisposeScope arguments, params IDisposable[] tables) : IDisposable
{
    /// <summary>The fast path; results in the caller's scope.</summary>
    public required Func<Tensor[]> Run { get; init; }

    /// <summary>The twin on fp32 copies in host memory, results in the same order.</summary>
    public required Func<Tensor[]> Reference { get; init; }

    /// <summary>Bytes of inputs and outputs, each once.</summary>
    public required long Bytes { get; init; }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var table in tables) table.Dispose();
        arguments.Dispose();
    }
}

/// <summary>One row of the table.</summary>
/// <param name="Name">What it computes.</param>
/// <param name="TargetShare">Share of the copy bandwidth to reach; 0 when bandwidth says nothing about it.</param>
/// <param name="Make">Draws a shape and its arguments.</param>
internal sealed record KernelCase(string Name, double TargetShare, Func<KernelDraw, KernelWork> Make);

/// <summary>Draws shapes and values: small and odd ones, or the one that is timed.</summary>
internal sealed class KernelDraw(Random random, Device device, ScalarType dtype, bool isLarge)
{
    /// <summary>Dtype of activations.</summary>
    public ScalarType Dtype => dtype;

    /// <summary>Bytes of an activation.</summary>
    public int ElementBytes => dtype == ScalarType.Float32 ? 4 : 2;

    /// <summary>Where the arguments are.</summary>
    public Device Device => device;

    /// <summary>At least 1 and below <paramref name="end"/>, or the size that is timed.</summary>
    public int Count(int end, int large) => isLarge ? large : random.Next(1, end);

    /// <summary>A multiple of <paramref name="step"/>, or the size that is timed.</summary>
    public int Multiple(int step, int end, int large) => isLarge ? large : step * random.Next(1, end);

    /// <summary>True with probability 3/4, and for the timed size.</summary>
    public bool Flag() => isLarge || random.Next(4) > 0;

    /// <summary>Normal values in the activations' dtype.</summary>
    public Tensor Values(params long[] shape) => Floats(shape).to_type(dtype);

    /// <summary>Normal values in fp32.</summary>
    public Tensor Floats(params long[] shape) => isLarge ? randn(shape, float32, device) : randn(shape, float32, CPU).to(device);

    /// <summary>Whole numbers below <paramref name="end"/>.</summary>
    public Tensor Ids(long end, params long[] shape) => randint(0, end, shape, int64, device);

    /// <summary>The same values in host memory in fp32.</summary>
    public static Tensor Wide(Tensor x) => x.cpu().to_type(float32).clone();
}

/// <summary>All kernels of <c>Ops/Kernels</c>.</summary>
internal static class KernelCases
{
    private const double Streaming = 0.8, Gather = 0.6, Epsilon = 1e-6;

    /// <summary>In the order of a training step.</summary>
    public static IReadOnlyList<KernelCase> All { get; } =
    [
        new("RMSNorm", Streaming, draw => Norm(draw, hasResidual: false, isBackward: false)),
        new("residual add + RMSNorm", Streaming, draw => Norm(draw, hasResidual: true, isBackward: false)),
        new("RMSNorm backward + residual gradient", Streaming, draw => Norm(draw, hasResidual: true, isBackward: true)),
        new("q/k norm + rotary", Streaming, draw => QueryKey(draw, isBackward: false)),
        new("q/k norm + rotary backward", Streaming, draw => QueryKey(draw, isBackward: true)),
        new("rotary", Streaming, Rotary),
        new("SwiGLU", Streaming, draw => Gated(draw, isBackward: false)),
        new("SwiGLU backward", Streaming, draw => Gated(draw, isBackward: true)),
        new("order of tokens by expert", 0, Order),
        new("permute: tokens to experts' rows", Gather, draw => Permute(draw, isSum: false)),
        new("unpermute: sum of experts' rows", Gather, draw => Permute(draw, isSum: true)),
        new("weighted SwiGLU", Streaming, draw => Weighted(draw, isBackward: false)),
        new("weighted SwiGLU backward", Streaming, draw => Weighted(draw, isBackward: true)),
        new("cross-entropy and its gradient", Streaming, CrossEntropy),
        new("embedding backward", Gather, Embedding),
        new("add to fp32 gradients", Streaming, Accumulate),
        new("norm of gradients", Streaming, GradNorm),
        new("AdamW", Streaming, Adam),
        new("SGD with momentum", Streaming, Sgd),
    ];

    private static KernelWork Norm(KernelDraw draw, bool hasResidual, bool isBackward)
    {
        var scope = NewDisposeScope();
        var (rows, width) = (draw.Count(700, 65536), draw.Multiple(8, 256, 2048));
        var (x, weight, grad) = (draw.Values(rows, width), draw.Values(width), draw.Values(rows, width));
        var residual = hasResidual ? draw.Values(rows, width) : null;
        var inverse = RmsNorm.Forward(x, weight, Epsilon).InverseRms;
        var passes = isBackward ? 4 + (hasResidual ? 1 : 0) : hasResidual ? 4 : 2;
        return new KernelWork(scope)
        {
            Bytes = (long)passes * rows * width * draw.ElementBytes,
            Run = () => Compute(x, weight, grad, residual, inverse),
            Reference = () => Compute(KernelDraw.Wide(x), KernelDraw.Wide(weight), KernelDraw.Wide(grad), residual is null ? null : KernelDraw.Wide(residual), inverse.cpu()),
        };

        Tensor[] Compute(Tensor x, Tensor weight, Tensor grad, Tensor? residual, Tensor inverse)
        {
            if (isBackward)
            {
                var (gradInput, gradWeightParts, again) = RmsNorm.Backward(grad, x, weight, inverse, residual, wantsOutput: true);
                return [gradInput, SumOf(gradWeightParts), again ?? x];
            }
            if (residual is null) return [RmsNorm.Forward(x, weight, Epsilon).Output];
            var (sum, output, _) = RmsNorm.ForwardAdd(x, residual, weight, Epsilon);
            return [sum, output];
        }
    }

    private static KernelWork QueryKey(KernelDraw draw, bool isBackward)
    {
        var scope = NewDisposeScope();
        var (tokens, groups, width) = (draw.Count(900, 32768), draw.Count(9, 8), draw.Multiple(16, 9, 128));
        var heads = groups * draw.Count(5, 4);
        var config = new RotaryConfig { Base = 1e4 };
        var rotary = new RotaryEmbedding(config, width, 4096, draw.Dtype, draw.Device);
        var wideRotary = new RotaryEmbedding(config, width, 4096, float32, CPU);
        var positions = draw.Ids(4096, tokens);
        var fused = draw.Values(tokens, heads + 2 * groups, width);
        var norm = new QueryKeyNorm(draw.Values(width), draw.Values(width), Epsilon);
        var wideNorm = new QueryKeyNorm(KernelDraw.Wide(norm.QueryWeight), KernelDraw.Wide(norm.KeyWeight), Epsilon);
        var gradients = new AttentionGradients(draw.Values(tokens, heads, width), draw.Values(tokens, groups, width), draw.Values(tokens, groups, width));
        var inverse = QueryKeyNormRotary.Forward(fused, heads, groups, norm, rotary, positions).InverseRms;
        long token = width * draw.ElementBytes;
        return new KernelWork(scope, rotary, wideRotary)
        {
            Bytes = tokens * (token * (isBackward ? 3 * heads + 5 * groups : 2 * (heads + groups)) + (heads + groups) * sizeof(float)), // and the inverse roots
            Run = () => Compute(fused, gradients, inverse, norm, rotary, positions),
            Reference = () => Compute(
                KernelDraw.Wide(fused), new AttentionGradients(KernelDraw.Wide(gradients.Query), KernelDraw.Wide(gradients.Key), KernelDraw.Wide(gradients.Value)),
                inverse?.cpu(), wideNorm, wideRotary, positions.cpu()),
        };

        Tensor[] Compute(Tensor fused, AttentionGradients gradients, Tensor? inverse, QueryKeyNorm norm, RotaryEmbedding rotary, Tensor positions)
        {
            if (!isBackward) return [QueryKeyNormRotary.Forward(fused, heads, groups, norm, rotary, positions).QueryKey];
            (Tensor, Tensor)? raw = inverse is null ? null : (fused.narrow(1, 0, heads + groups), inverse);
            var (gradHeads, gradWeightParts) = QueryKeyNormRotary.Backward(gradients, raw, norm, rotary, positions);
            return gradWeightParts is null ? [gradHeads] : [gradHeads, SumOf(gradWeightParts.select(1, 0)), SumOf(gradWeightParts.select(1, 1))];
        }
    }

    private static KernelWork Rotary(KernelDraw draw)
    {
        var scope = NewDisposeScope();
        var (tokens, heads, width) = (draw.Count(900, 32768), draw.Count(40, 32), draw.Multiple(16, 9, 128));
        var config = new RotaryConfig { Base = 1e4 };
        var rotary = new RotaryEmbedding(config, width, 4096, draw.Dtype, draw.Device);
        var wideRotary = new RotaryEmbedding(config, width, 4096, float32, CPU);
        var (positions, x) = (draw.Ids(4096, tokens), draw.Values(tokens, heads, width));
        return new KernelWork(scope, rotary, wideRotary)
        {
            Bytes = 2L * tokens * heads * width * draw.ElementBytes,
            Run = () => Turn(x, rotary, positions),
            Reference = () => Turn(KernelDraw.Wide(x), wideRotary, positions.cpu()),
        };

        static Tensor[] Turn(Tensor x, RotaryEmbedding rotary, Tensor positions)
        {
            rotary.ForwardInPlace(x, positions);
            return [x];
        }
    }

    private static KernelWork Gated(KernelDraw draw, bool isBackward)
    {
        var scope = NewDisposeScope();
        var (rows, width) = (draw.Count(700, 16384), draw.Multiple(8, 500, 6144));
        var (gateUp, grad) = (draw.Values(rows, 2 * width), draw.Values(rows, width));
        return new KernelWork(scope)
        {
            Bytes = (isBackward ? 6L : 3L) * rows * width * draw.ElementBytes,
            Run = () => Compute(grad, gateUp),
            Reference = () => Compute(KernelDraw.Wide(grad), KernelDraw.Wide(gateUp)),
        };

        Tensor[] Compute(Tensor grad, Tensor gateUp)
        {
            if (!isBackward) return [SwiGlu.Forward(gateUp)];
            var (gradGateUp, output) = SwiGlu.Backward(grad, gateUp);
            return [gradGateUp, output ?? SwiGlu.Forward(gateUp)];
        }
    }

    private static KernelWork Weighted(KernelDraw draw, bool isBackward)
    {
        var scope = NewDisposeScope();
        var (rows, width) = (draw.Count(700, 131072), draw.Multiple(8, 200, 768));
        var (gateUp, grad, weights) = (draw.Values(rows, 2 * width), draw.Values(rows, width), draw.Floats(rows));
        return new KernelWork(scope)
        {
            Bytes = (isBackward ? 5L : 3L) * rows * width * draw.ElementBytes,
            Run = () => Compute(grad, gateUp, weights),
            Reference = () => Compute(KernelDraw.Wide(grad), KernelDraw.Wide(gateUp), weights.cpu()),
        };

        Tensor[] Compute(Tensor grad, Tensor gateUp, Tensor weights)
        {
            if (!isBackward) return [WeightedSwiGlu.Forward(gateUp, weights)];
            var (gradGateUp, gradWeights, _) = WeightedSwiGlu.Backward(grad, gateUp, weights, wantsOutput: false);
            return [gradGateUp, gradWeights];
        }
    }

    private static KernelWork Order(KernelDraw draw)
    {
        var scope = NewDisposeScope();
        var (tokens, expertsPerToken) = (draw.Count(3000, 16384), draw.Count(9, 8));
        var numExperts = expertsPerToken + draw.Count(300, 120);
        var experts = Experts(draw, tokens, expertsPerToken, numExperts);
        return new KernelWork(scope)
        {
            Bytes = 0,
            Run = () => Plan(experts),
            Reference = () => Plan(experts.cpu()),
        };

        Tensor[] Plan(Tensor experts)
        {
            var (order, rowsPerExpert) = TokenPermutation.Plan(experts, numExperts);
            return [order.PlaceOfRow_R, order.RowOfPlace_Tk, rowsPerExpert];
        }
    }

    private static KernelWork Permute(KernelDraw draw, bool isSum)
    {
        var scope = NewDisposeScope();
        var (tokens, expertsPerToken, width) = (draw.Count(700, 16384), draw.Count(9, 8), draw.Multiple(8, 200, 2048));
        var experts = Experts(draw, tokens, expertsPerToken, expertsPerToken + draw.Count(60, 120));
        var order = TokenPermutation.Plan(experts, expertsPerToken + 300).Order;
        var hostOrder = new TokenOrder(order.PlaceOfRow_R.cpu(), order.RowOfPlace_Tk.cpu());
        var x = draw.Values(isSum ? tokens * expertsPerToken : tokens, width);
        return new KernelWork(scope)
        {
            Bytes = (1L + expertsPerToken) * tokens * width * draw.ElementBytes,
            Run = () => [isSum ? TokenPermutation.Sum(x, order.RowOfPlace_Tk) : TokenPermutation.Copy(x, order)],
            Reference = () => [isSum ? TokenPermutation.Sum(KernelDraw.Wide(x), hostOrder.RowOfPlace_Tk) : TokenPermutation.Copy(KernelDraw.Wide(x), hostOrder)],
        };
    }

    /// <summary>[tokens, expertsPerToken] different experts for each token.</summary>
    private static Tensor Experts(KernelDraw draw, int tokens, int expertsPerToken, int numExperts)
    {
        using var scores = draw.Floats(tokens, numExperts);
        return scores.topk(expertsPerToken, dim: -1).indexes;
    }

    private static KernelWork CrossEntropy(KernelDraw draw)
    {
        var scope = NewDisposeScope();
        var (rows, vocabulary) = (draw.Count(300, 2048), draw.Multiple(8, 4000, 151936));
        var (logits, labels) = (draw.Values(rows, vocabulary).mul_(3), draw.Ids(vocabulary, rows));
        labels[0] = -100;
        var weights = labels.ge(0).to_type(float32);
        var factor = tensor(0.37, float64, draw.Device);
        return new KernelWork(scope)
        {
            Bytes = 2L * rows * vocabulary * draw.ElementBytes,
            Run = () => [CrossEntropyKernel.Compute(logits, labels, weights, factor), logits],
            Reference = () =>
            {
                using var parallel = ParallelState.SingleRank();
                var wide = KernelDraw.Wide(logits);
                var shard = new VocabularyShard(vocabulary, parallel.TensorParallel);
                return [VocabParallelCrossEntropy.Compute(wide, labels.cpu(), weights.cpu(), 0.37, shard, parallel.TensorParallel), wide];
            },
        };
    }

    private static KernelWork Embedding(KernelDraw draw)
    {
        var scope = NewDisposeScope();
        var (tokens, width, vocabulary) = (draw.Count(900, 65536), draw.Multiple(8, 200, 2048), draw.Count(400, 151936));
        var (ids, grad, table) = (draw.Ids(vocabulary, tokens), draw.Values(tokens, width), draw.Floats(vocabulary, width));
        var distinct = ids.cpu().data<long>().ToArray().Distinct().Count();
        return new KernelWork(scope)
        {
            Bytes = (long)width * (tokens * draw.ElementBytes + distinct * 2L * sizeof(float)),
            Run = () => Add(table, grad, ids),
            Reference = () => Add(KernelDraw.Wide(table), KernelDraw.Wide(grad), ids.cpu()),
        };

        static Tensor[] Add(Tensor table, Tensor grad, Tensor ids)
        {
            GradientAccumulation.AddEmbeddingRows(table, grad, ids);
            return [table];
        }
    }

    private static KernelWork Accumulate(KernelDraw draw)
    {
        var scope = NewDisposeScope();
        var count = draw.Count(300_000, 1 << 27);
        var overwrite = draw.Flag();
        var (target, gradient) = (draw.Floats(count), draw.Values(count));
        return new KernelWork(scope)
        {
            Bytes = (long)count * (draw.ElementBytes + (overwrite ? 1 : 2) * sizeof(float)),
            Run = () => Add(target, gradient),
            Reference = () => Add(KernelDraw.Wide(target), KernelDraw.Wide(gradient)),
        };

        Tensor[] Add(Tensor target, Tensor gradient)
        {
            GradientAccumulation.Add(target, gradient, overwrite);
            return [target];
        }
    }

    private static KernelWork GradNorm(KernelDraw draw)
    {
        var scope = NewDisposeScope();
        var count = draw.Count(3_000_000, 1 << 28);
        var gradient = draw.Floats(count);
        FlatRange[] ranges = count < 1000 ? [new(0, count)] : [new(0, count / 3), new(count / 2 / FlatLayout.Alignment * FlatLayout.Alignment, count)];
        return new KernelWork(scope)
        {
            Bytes = ranges.Sum(range => range.Length) * sizeof(float),
            Run = () => [GradientNorm.SumOfSquares(gradient, ranges)],
            Reference = () => [GradientNorm.SumOfSquares(gradient.cpu(), ranges)],
        };
    }

    private static KernelWork Adam(KernelDraw draw)
    {
        var scope = NewDisposeScope();
        var count = draw.Count(300_000, 1 << 26);
        var (master, gradient, first, second) = (draw.Floats(count), draw.Floats(count), draw.Floats(count), draw.Floats(count).square());
        var model = draw.Dtype == float32 ? master : master.to_type(draw.Dtype);
        var step = new AdamWStep(1e-2, 0.1, 0.9, 0.95, 1e-8, StepCount: 7);
        var factor = tensor(0.7f, device: draw.Device);
        return new KernelWork(scope)
        {
            Bytes = (long)count * (7 * sizeof(float) + (draw.Dtype == float32 ? 0 : draw.ElementBytes)),
            Run = () =>
            {
                AdamWKernel.Step(master, gradient, first, second, model, step, factor);
                return [master, first, second, model];
            },
            Reference = () =>
            {
                var (p, m, v) = (KernelDraw.Wide(master), KernelDraw.Wide(first), KernelDraw.Wide(second));
                AdamW.Reference(p, KernelDraw.Wide(gradient), m, v, step, 0.7f);
                return [p, m, v, p];
            },
        };
    }

    private static KernelWork Sgd(KernelDraw draw)
    {
        var scope = NewDisposeScope();
        var count = draw.Count(300_000, 1 << 26);
        var (master, gradient, momentum) = (draw.Floats(count), draw.Floats(count), draw.Floats(count));
        var model = draw.Dtype == float32 ? master : master.to_type(draw.Dtype);
        var factor = tensor(0.7f, device: draw.Device);
        return new KernelWork(scope)
        {
            Bytes = (long)count * (5 * sizeof(float) + (draw.Dtype == float32 ? 0 : draw.ElementBytes)),
            Run = () =>
            {
                SgdMomentumKernel.Step(master, gradient, momentum, model, 1e-2, 0.1, 0.9, factor);
                return [master, momentum, model];
            },
            Reference = () =>
            {
                var (p, b) = (KernelDraw.Wide(master), KernelDraw.Wide(momentum));
                SgdMomentum.Reference(p, KernelDraw.Wide(gradient), b, 1e-2, 0.1, 0.9, 0.7f);
                return [p, b, p];
            },
        };
    }

    /// <summary>As the main gradients get it.</summary>
    private static Tensor SumOf(Tensor parts_PO)
    {
        var sum = empty(parts_PO.shape[1], parts_PO.dtype, parts_PO.device);
        GradientAccumulation.AddSum(sum, parts_PO, overwrite: true);
        return sum;
    }
}
