using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using Megatron.Compute.TensorParallel;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Gpu;

/// <summary>Every CUDA kernel against the same function in plain libtorch operations, on random shapes, odd ones included.</summary>
[Trait("Category", "gpu")]
public sealed class KernelTests(ITestOutputHelper output)
{
    private const int Cases = 12;

    public static TheoryData<ScalarType, double> Precisions => new() { { ScalarType.Float32, 1e-5 }, { ScalarType.BFloat16, 1e-2 }, { ScalarType.Float16, 1e-2 } };

    [Theory, MemberData(nameof(Precisions))]
    public void RmsNorm_RandomShapes_EqualsReference(ScalarType dtype, double tolerance) => Run((random, generator) =>
    {
        var (rows, width) = (random.Next(1, 700), 8 * random.Next(1, dtype == ScalarType.Float32 ? 512 : 1024)); // up to what the kernel takes
        var x = Random([rows, width], dtype, generator);
        var weight = Random([width], dtype, generator);
        var grad = Random([rows, width], dtype, generator);
        CompareNorm($"[{rows}, {width}]", x, weight, grad, tolerance);
    });

    [Theory, MemberData(nameof(Precisions))]
    public void RmsNormWithResidual_RandomShapes_EqualsReference(ScalarType dtype, double tolerance) => Run((random, generator) =>
    {
        var (rows, width) = (random.Next(1, 3000), 8 * random.Next(1, 256));
        var (x, residual, grad, residualGradient) = (
            Random([rows, width], dtype, generator), Random([rows, width], dtype, generator), Random([rows, width], dtype, generator), Random([rows, width], dtype, generator));
        var weight = Random([width], dtype, generator);
        var (sum, actual, inverse) = RmsNorm.ForwardAdd(x, residual, weight, 1e-6);
        var (expectedSum, expected, _) = RmsNorm.ForwardAdd(Wide(x), Wide(residual), Wide(weight), 1e-6);
        Compare($"sum [{rows}, {width}]", sum, expectedSum, tolerance);
        Compare("norm of the sum", actual, expected, tolerance);
        var (gradInput, gradWeight, again) = RmsNorm.Backward(grad, sum, weight, inverse, residualGradient, wantsOutput: true);
        var (expectedInput, expectedWeight, _) = RmsNorm.Backward(Wide(grad), Wide(sum), Wide(weight), inverse.cpu(), Wide(residualGradient));
        Compare("gradient of the sum", gradInput, expectedInput, tolerance);
        Compare("gradient of the weight", gradWeight.sum(dim: 0), expectedWeight.sum(dim: 0), tolerance);
        Assert.True(again is not null && again.equal(actual).all().item<bool>(), "the backward's output has other bits than the forward's");
    });

    [Theory, MemberData(nameof(Precisions))]
    public void QueryKeyNormRotary_RandomShapes_EqualsReference(ScalarType dtype, double tolerance) => Run((random, generator) =>
    {
        var (tokens, groups, width, hasNorm) = (random.Next(1, 900), random.Next(1, 9), 16 * random.Next(1, 9), random.Next(4) > 0);
        var numHeads = groups * random.Next(1, 5);
        var config = new Megatron.Compute.Configuration.RotaryConfig { Base = 1e4 };
        using var rotary = new RotaryEmbedding(config, width, 1024, dtype, Megatron.Testing.Gpu.Device);
        using var rotaryReference = new RotaryEmbedding(config, width, 1024, ScalarType.Float32, CPU);
        var positions = randint(0, 1024, [tokens], dtype: ScalarType.Int64, device: Megatron.Testing.Gpu.Device, generator: null);
        var heads = Random([tokens, numHeads + 2 * groups, width], dtype, generator);
        QueryKeyNorm? norm = hasNorm ? new QueryKeyNorm(Random([width], dtype, generator), Random([width], dtype, generator), 1e-6) : null;
        QueryKeyNorm? reference = norm is { } given ? new QueryKeyNorm(Wide(given.QueryWeight), Wide(given.KeyWeight), 1e-6) : null;
        var what = $"[{tokens}, {numHeads} + 2 × {groups}, {width}], {(hasNorm ? "with" : "without")} norm";
        var (wideHeads, rawWide) = (Wide(heads), Wide(heads));

        var (queryKey, inverse) = QueryKeyNormRotary.Forward(heads.clone(), numHeads, groups, norm, rotary, positions);
        var (expected, expectedInverse) = QueryKeyNormRotary.Forward(wideHeads, numHeads, groups, reference, rotaryReference, positions.cpu());
        Compare($"forward {what}", queryKey, expected, tolerance);

        // As cuDNN leaves them: [B, S, N, D] in the memory order of the inputs, here with a stride of its own.
        var gradients = new AttentionGradients(
            Random([tokens, numHeads + 1, width], dtype, generator).narrow(1, 0, numHeads), Random([tokens, groups, width], dtype, generator), Random([groups, tokens, width], dtype, generator).transpose(0, 1));
        var wideGradients = new AttentionGradients(Wide(gradients.Query), Wide(gradients.Key), Wide(gradients.Value));
        (Tensor, Tensor)? raw = inverse is null ? null : (heads.narrow(1, 0, numHeads + groups), inverse);
        (Tensor, Tensor)? rawReference = expectedInverse is null ? null : (rawWide.narrow(1, 0, numHeads + groups), expectedInverse);
        var (gradHeads, gradWeights) = QueryKeyNormRotary.Backward(gradients, raw, norm, rotary, positions);
        var (expectedHeads, expectedWeights) = QueryKeyNormRotary.Backward(wideGradients, rawReference, reference, rotaryReference, positions.cpu());
        Compare($"gradient {what}", gradHeads, expectedHeads, tolerance);
        if (gradWeights is not null && expectedWeights is not null) Compare("gradient of the weights", gradWeights.sum(dim: 0), expectedWeights.sum(dim: 0), tolerance);
    });

    [Theory, MemberData(nameof(Precisions))]
    public void SwiGlu_RandomShapes_EqualsReference(ScalarType dtype, double tolerance) => Run((random, generator) =>
    {
        var (rows, width) = (random.Next(1, 700), 8 * random.Next(1, 500));
        var gateUp = Random([rows, 2 * width], dtype, generator);
        var grad = Random([rows, width], dtype, generator);
        Compare($"forward [{rows}, {width}]", SwiGlu.Forward(gateUp), SwiGlu.Forward(Wide(gateUp)), tolerance);
        var (gradGateUp, again) = SwiGlu.Backward(grad, gateUp);
        Compare($"backward [{rows}, {width}]", gradGateUp, SwiGlu.Backward(Wide(grad), Wide(gateUp)).GradGateUp_T2F, tolerance);
        Assert.True(again is not null && again.equal(SwiGlu.Forward(gateUp)).all().item<bool>(), "the backward's output has other bits than the forward's");
    });

    [Theory, MemberData(nameof(Precisions))]
    public void Rotary_RandomShapes_EqualsReferenceAndIsInvertible(ScalarType dtype, double tolerance) => Run((random, generator) =>
    {
        var (tokens, heads, width) = (random.Next(1, 900), random.Next(1, 40), 16 * random.Next(1, 9));
        var config = new Megatron.Compute.Configuration.RotaryConfig { Base = 1e4 };
        using var onGpu = new RotaryEmbedding(config, width, 1024, dtype, Megatron.Testing.Gpu.Device);
        using var reference = new RotaryEmbedding(config, width, 1024, ScalarType.Float32, CPU);
        var positions = randint(0, 1024, [tokens], dtype: ScalarType.Int64, device: Megatron.Testing.Gpu.Device, generator: null);
        var x = Random([tokens, heads + 2, width], dtype, generator).narrow(1, 0, heads);
        var expected = Wide(x).contiguous();
        var original = x.clone();
        reference.ForwardInPlace(expected, positions.cpu());
        onGpu.ForwardInPlace(x, positions);
        Compare($"[{tokens}, {heads}, {width}]", x, expected, tolerance);
        onGpu.BackwardInPlace(x, positions);
        Compare("and back", x, Wide(original), tolerance);
    });

    [Theory, MemberData(nameof(Precisions))]
    public void CrossEntropy_RandomShapes_EqualsReference(ScalarType dtype, double tolerance) => Run((random, generator) =>
    {
        using var parallel = Megatron.Compute.Distributed.ParallelState.SingleRank();
        var (rows, vocabulary) = (random.Next(1, 300), 8 * random.Next(1, 4000));
        var logits = Random([rows, vocabulary], dtype, generator).mul_(3);
        var labels = randint(0, vocabulary, [rows], dtype: ScalarType.Int64, device: Megatron.Testing.Gpu.Device, generator: null);
        labels[0] = -100;
        var weights = labels.ge(0).to_type(ScalarType.Float32);
        var wide = Wide(logits);
        var expected = VocabParallelCrossEntropy.Compute(wide, labels.cpu(), weights.cpu(), 0.37, new VocabularyShard((int)wide.shape[1], parallel.TensorParallel), parallel.TensorParallel);
        var loss = CrossEntropyKernel.Compute(logits, labels, weights, tensor(0.37, ScalarType.Float64, Megatron.Testing.Gpu.Device));
        Compare($"loss [{rows}, {vocabulary}]", loss, expected, tolerance);
        Compare("gradient", logits, wide, tolerance);
    });

    [Theory, MemberData(nameof(Precisions))]
    public void AdamW_RandomLengths_EqualsReference(ScalarType dtype, double tolerance) => Run((random, generator) =>
    {
        var count = random.Next(1, 300_000);
        var (master, gradient) = (Random([count], ScalarType.Float32, generator), Random([count], ScalarType.Float32, generator));
        var (first, second) = (Random([count], ScalarType.Float32, generator), Random([count], ScalarType.Float32, generator).square());
        var model = dtype == ScalarType.Float32 ? master : zeros([count], dtype, Megatron.Testing.Gpu.Device);
        var step = new AdamWStep(1e-2, 0.1, 0.9, 0.95, 1e-8, random.Next(1, 50));
        var (expected, m, v) = (Wide(master), Wide(first), Wide(second));
        AdamW.Reference(expected, Wide(gradient), m, v, step, 0.7f);
        AdamWKernel.Step(master, gradient, first, second, model, step, tensor(float.NaN, device: Megatron.Testing.Gpu.Device)); // changes nothing
        AdamWKernel.Step(master, gradient, first, second, model, step, tensor(0.7f, device: Megatron.Testing.Gpu.Device));
        Compare($"weights [{count}]", master, expected, 1e-5);
        Compare("first moment", first, m, 1e-5);
        Compare("second moment", second, v, 1e-5);
        Compare("written back", model, expected, tolerance);
    });

    [Fact]
    public void WideProduct_RandomShapes_EqualsFp32Products() => Run((random, generator) =>
    {
        var (tokens, inputs, outputs) = (random.Next(1, 700), 8 * random.Next(1, 100), 8 * random.Next(1, 20));
        var (x, weight) = (Random([tokens, inputs], ScalarType.BFloat16, generator), Random([outputs, inputs], ScalarType.BFloat16, generator));
        var gradient = Random([tokens, outputs], ScalarType.Float32, generator);
        Assert.True(WideProduct.Supports(x, weight));
        Compare("forward", WideProduct.Forward(x, weight), Wide(x).mm(Wide(weight).t()), 1e-5);
        using var parameter = new Parameter("gate", weight, [TensorBlock.Whole("gate", outputs, inputs)], new ParameterTraits { Decays = true });
        using var mainGrad = Random([outputs, inputs], ScalarType.Float32, generator);
        parameter.GradientSlot = new Megatron.Compute.Distributed.GradientSlot(0, [outputs, inputs], mainGrad);
        var split = WideProduct.Split(gradient);
        var expected = Wide(mainGrad).add(Wide(gradient).t().mm(Wide(x)));
        Compare("gradient of the input", WideProduct.BackwardInput(split, weight), Wide(gradient).mm(Wide(weight)), 1e-2);
        WideProduct.BackwardWeight(parameter, split, x);
        Compare("gradient of the weight", mainGrad, expected, 1e-5);
    });

    [Fact]
    public void KernelTable_EveryKernel_EqualsItsTwin()
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        using var leaks = LeakCheck.Start();
        var rows = Megatron.Compute.Training.KernelTable.Run(Megatron.Testing.Gpu.Device, Environment.TickCount);
        output.WriteLine(Megatron.Compute.Training.KernelTable.Markdown(rows));
        Assert.All(rows, row => Assert.True(row.HasGoodErrors, $"{row.Kernel}: {row.ErrorFp32:E1} in fp32, {row.ErrorBf16:E1} in bf16"));
    }

    private void CompareNorm(string shape, Tensor x, Tensor weight, Tensor grad, double tolerance)
    {
        Assert.True(RmsNormKernel.Supports(x, weight), $"{shape} is not taken by the kernel");
        var (actual, inverse) = RmsNorm.Forward(x, weight, 1e-6);
        var (expected, expectedInverse) = RmsNorm.Forward(Wide(x), Wide(weight), 1e-6);
        Compare($"forward {shape}", actual, expected, tolerance);
        var (gradInput, gradWeight, _) = RmsNorm.Backward(grad, x, weight, inverse);
        var (expectedInput, expectedWeight, _) = RmsNorm.Backward(Wide(grad), Wide(x), Wide(weight), expectedInverse);
        Compare("gradient of the input", gradInput, expectedInput, tolerance);
        Compare("gradient of the weight", gradWeight.sum(dim: 0), expectedWeight.sum(dim: 0), tolerance);
    }

    private void Run(Action<Random, Generator> test)
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        var seed = Environment.TickCount;
        output.WriteLine($"seed {seed}");
        using var leaks = LeakCheck.Start();
        var random = new Random(seed);
        using var generator = new Generator((ulong)seed, CPU);
        for (var i = 0; i < Cases; i++)
        {
            using var scope = NewDisposeScope();
            test(random, generator);
        }
    }

    private static Tensor Random(long[] shape, ScalarType dtype, Generator generator) =>
        randn(shape, ScalarType.Float32, CPU, generator: generator).to(dtype, Megatron.Testing.Gpu.Device);

    /// <summary>The same values on the CPU in fp32: the reference path.</summary>
    private static Tensor Wide(Tensor x) => x.cpu().to_type(ScalarType.Float32).clone();

    private static void Compare(string what, Tensor actual, Tensor expected, double tolerance)
    {
        var wide = Wide(actual);
        var difference = wide.sub(expected).norm().item<float>() / Math.Max(expected.norm().item<float>(), 1e-20f);
        Assert.True(difference <= tolerance, $"{what}: relative L2 {difference:E2} > {tolerance:E1}");
    }
}
