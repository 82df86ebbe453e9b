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
    public void RmsNormOfHeads_InsideAFusedProjection_EqualsReference(ScalarType dtype, double tolerance) => Run((random, generator) =>
    {
        var (tokens, heads, width) = (random.Next(1, 900), random.Next(1, 40), dtype == ScalarType.Float32 ? 4 * random.Next(1, 17) : 8 * random.Next(1, 17));
        var x = Random([tokens, heads + 3, width], dtype, generator).narrow(1, 0, heads);
        var weight = Random([heads, width], dtype, generator);
        var grad = Random([tokens, heads + 3, width], dtype, generator).narrow(1, 0, heads);
        CompareNorm($"[{tokens}, {heads}, {width}]", x, weight, grad, tolerance);
    });

    [Theory, MemberData(nameof(Precisions))]
    public void SwiGlu_RandomShapes_EqualsReference(ScalarType dtype, double tolerance) => Run((random, generator) =>
    {
        var (rows, width) = (random.Next(1, 700), 8 * random.Next(1, 500));
        var gateUp = Random([rows, 2 * width], dtype, generator);
        var grad = Random([rows, width], dtype, generator);
        Compare($"forward [{rows}, {width}]", SwiGlu.Forward(gateUp), SwiGlu.Forward(Wide(gateUp)), tolerance);
        Compare($"backward [{rows}, {width}]", SwiGlu.Backward(grad, gateUp), SwiGlu.Backward(Wide(grad), Wide(gateUp)), tolerance);
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
        var expected = VocabParallelCrossEntropy.Compute(wide, labels.cpu(), weights.cpu(), 0.37, parallel.TensorParallel);
        var loss = CrossEntropyKernel.Compute(logits, labels, weights, 0.37);
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
        var step = new AdamWStep(1e-2, 0.1, 0.9, 0.95, 1e-8, random.Next(1, 50), 0.7);
        var (expected, m, v) = (Wide(master), Wide(first), Wide(second));
        AdamW.Reference(expected, Wide(gradient), m, v, step);
        AdamWKernel.Step(master, gradient, first, second, model, step);
        Compare($"weights [{count}]", master, expected, 1e-5);
        Compare("first moment", first, m, 1e-5);
        Compare("second moment", second, v, 1e-5);
        Compare("written back", model, expected, tolerance);
    });

    private void CompareNorm(string shape, Tensor x, Tensor weight, Tensor grad, double tolerance)
    {
        Assert.True(RmsNormKernel.Supports(x, weight), $"{shape} is not taken by the kernel");
        var (actual, inverse) = RmsNorm.Forward(x, weight, 1e-6);
        var (expected, expectedInverse) = RmsNorm.Forward(Wide(x), Wide(weight), 1e-6);
        Compare($"forward {shape}", actual, expected, tolerance);
        var (gradInput, gradWeight) = RmsNorm.Backward(grad, x, weight, inverse);
        var (expectedInput, expectedWeight) = RmsNorm.Backward(Wide(grad), Wide(x), Wide(weight), expectedInverse);
        Compare("gradient of the input", gradInput, expectedInput, tolerance);
        Compare("gradient of the weight", gradWeight, expectedWeight, tolerance);
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
