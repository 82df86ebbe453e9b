using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Gpu;

/// <summary>Matrix products whose algorithm is chosen by measuring, and float8, against fp64 and against the CPU's rounding.</summary>
[Trait("Category", "gpu")]
public sealed class ProductTests(ITestOutputHelper output)
{
    /// <summary>Shapes above and below the size from which algorithms are measured.</summary>
    public static TheoryData<long, long, long> Extents => new() { { 4096, 1536, 2048 }, { 4000, 2048, 1536 }, { 96, 200, 72 } };

    [Theory, MemberData(nameof(Extents))]
    public void LinearProducts_Bf16_EqualFp64AndThemselves(long tokens, long outputs, long inputs) => Run(generator =>
    {
        var (x, grad) = (Random([tokens, inputs], generator), Random([tokens, outputs], generator));
        var (weight, bias) = (Random([outputs, inputs], generator), Random([outputs], generator));
        for (var repeat = 0; repeat < 2; repeat++)
        {
            Compare("output", LinearProduct.Output(x, weight, bias, ProductOptions.Default), Wide(x).mm(Wide(weight).t()).add(Wide(bias)), 4e-3);
            Compare("input gradient", LinearProduct.InputGradient(grad, weight, ProductOptions.Default), Wide(grad).mm(Wide(weight)), 4e-3);
            var rows = zeros([tokens, inputs], ScalarType.BFloat16, x.device);
            LinearProduct.InputGradientInto(rows, grad, weight, ProductOptions.Default);
            Compare("input gradient in place", rows, Wide(grad).mm(Wide(weight)), 4e-3);
        }
        Assert.True(LinearProduct.Output(x, weight, bias, ProductOptions.Default).eq(LinearProduct.Output(x, weight, bias, ProductOptions.Default)).all().item<bool>(), "the same product twice differs");
    });

    [Theory, MemberData(nameof(Extents))]
    public void WeightGradient_StridedRows_AddsInFp32(long tokens, long outputs, long inputs) => Run(generator =>
    {
        var (x, grad) = (Random([tokens, inputs + 64], generator).narrow(1, 64, inputs), Random([tokens, 2 * outputs], generator).narrow(1, outputs, outputs));
        foreach (var isDeterministic in (bool[])[false, true])
        {
            var options = new ProductOptions { IsDeterministic = isDeterministic };
            var target = randn([outputs, inputs], ScalarType.Float32, x.device);
            var expected = Wide(target).add(Wide(grad).t().mm(Wide(x)));
            WeightGradient.Accumulate(target, grad, x, options);
            Compare("added", target, expected, 1e-5);
            WeightGradient.Accumulate(target.fill_(float.NaN), grad, x, options, overwrite: true);
            Compare("overwritten", target, Wide(grad).t().mm(Wide(x)), 1e-5);
        }
    });

    [Theory, InlineData(Float8Kind.E4M3), InlineData(Float8Kind.E5M2)]
    public void Float8Round_RandomMatrices_HasTheBitsOfTheReference(Float8Kind kind) => Run(generator =>
    {
        foreach (var (rows, columns, size) in ((long, long, float)[])[(16, 16, 1), (144, 272, 1e-6f), (400, 1040, 3e4f), (128, 128, 0)])
        {
            var x = Random([rows, columns], generator).mul_(size);
            var magnitude = Float8.LargestMagnitude(x);
            var onHost = x.cpu();
            var expectedMagnitude = Float8.LargestMagnitude(onHost);
            Assert.Equal(expectedMagnitude.item<float>(), magnitude.item<float>());
            var (straight, transposed) = Float8.RoundBoth(x, magnitude, kind);
            var expected = Float8.Round(onHost, expectedMagnitude, kind);
            Assert.Equal(expected.Unit.item<float>(), straight.Unit.item<float>());
            Assert.Equal(expected.Unit.item<float>(), transposed.Unit.item<float>());
            Assert.True(Values(straight).eq(expected.Matrix).all().item<bool>(), $"[{rows}, {columns}] × {size}: values differ");
            Assert.True(Values(transposed).eq(expected.Matrix.t()).all().item<bool>(), $"[{rows}, {columns}] × {size}: values of the transpose differ");
            Assert.True(Values(Float8.RoundTransposed(x, magnitude, kind)).eq(expected.Matrix.t()).all().item<bool>(), "the transpose alone differs");
        }
    });

    [Fact]
    public void Float8Round_NotFinite_IsNotFinite() => Run(generator =>
    {
        foreach (var bad in (float[])[float.NaN, float.PositiveInfinity])
        {
            var x = Random([32, 32], generator);
            x[3, 5] = bad;
            var rounded = Float8.Round(x, Float8.LargestMagnitude(x), Float8Kind.E5M2);
            Assert.False(Values(rounded).mul(rounded.Unit.cpu()).isfinite().all().item<bool>());
        }
    });

    [Theory, InlineData(Float8Format.E4M3), InlineData(Float8Format.Hybrid)]
    public void LinearProducts_Float8_EqualTheCpus(Float8Format format) => Run(generator =>
    {
        foreach (var (tokens, outputs, inputs) in ((long, long, long)[])[(64, 48, 80), (2048, 1536, 2048)])
        {
            var (x, grad) = (Random([tokens, inputs], generator), Random([tokens, outputs], generator).mul_(1e-4f));
            var (weight, bias) = (Random([outputs, inputs], generator), Random([outputs], generator));
            var actual = RunLayer(x, grad, weight, bias, format);
            var expected = RunLayer(x.cpu(), grad.cpu(), weight.cpu(), bias.cpu(), format);
            Compare($"output [{tokens}, {outputs}, {inputs}]", actual.Output, Wide(expected.Output), 4e-3);
            Compare("input gradient", actual.GradInput, Wide(expected.GradInput), 4e-3);
            Compare("weight gradient", actual.GradWeight, Wide(expected.GradWeight), 1e-3); // partial sums of float8 products keep fewer bits than fp32's
        }
    });

    private static (Tensor Output, Tensor GradInput, Tensor GradWeight) RunLayer(Tensor x, Tensor grad, Tensor weightData, Tensor biasData, Float8Format format)
    {
        var gradient = zeros(weightData.shape, ScalarType.Float32, x.device);
        using var context = new ForwardContext(TestBatches.Random(new Random(1), 10, [4]), x.device, step: 0, isTraining: true, lossFactor: 1, auxiliaryLossFactor: 0);
        using var saved = new Saved(context);
        using var weight = new Parameter("weight", weightData.alias(), [TensorBlock.Whole("weight", weightData.shape)], new ParameterTraits { Decays = true })
        {
            GradientSlot = new GradientSlot(0, weightData.shape, gradient),
        };
        using var bias = new Parameter("bias", biasData.alias(), [TensorBlock.Whole("bias", biasData.shape)], new ParameterTraits { Decays = false });
        var products = new LinearProducts(weight, bias, new ProductOptions { Float8 = format });
        var output = products.Output(x, saved);
        var gradInput = products.InputGradient(grad, saved);
        products.AddKeptGradient(x, saved);
        Assert.Equal(0, saved.SizeBytes);
        return (output, gradInput, gradient);
    }

    /// <summary>The values of float8 bytes, in fp32 on the CPU.</summary>
    private static Tensor Values(Float8Matrix x)
    {
        var bytes = x.Matrix.cpu().contiguous().data<byte>().ToArray();
        return tensor(bytes.Select(value => Decode(value, x.Kind)).ToArray()).view(x.Matrix.shape);
    }

    private static float Decode(byte value, Float8Kind kind)
    {
        var (mantissaBits, bias) = kind == Float8Kind.E4M3 ? (3, 7) : (2, 15);
        var (exponent, mantissa) = ((value & 0x7f) >> mantissaBits, value & (1 << mantissaBits) - 1);
        if (kind == Float8Kind.E4M3 ? (value & 0x7f) == 0x7f : exponent == 31) return float.NaN;
        var size = exponent == 0 ? Math.ScaleB(mantissa, 1 - bias - mantissaBits) : Math.ScaleB(mantissa + (1 << mantissaBits), exponent - bias - mantissaBits);
        return (float)(value >= 0x80 ? -size : size);
    }

    private void Run(Action<Generator> test)
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        var seed = Environment.TickCount;
        output.WriteLine($"seed {seed}");
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var generator = new Generator((ulong)seed, CPU);
        test(generator);
    }

    private static Tensor Random(long[] shape, Generator generator) =>
        randn(shape, ScalarType.Float32, CPU, generator: generator).to(ScalarType.BFloat16, Megatron.Testing.Gpu.Device);

    private static Tensor Wide(Tensor x) => x.to(ScalarType.Float64, Megatron.Testing.Gpu.Device);

    private static void Compare(string what, Tensor actual, Tensor expected, double tolerance)
    {
        var difference = Wide(actual).sub(expected).norm().item<double>() / Math.Max(expected.norm().item<double>(), 1e-30);
        Assert.True(difference <= tolerance, $"{what}: relative L2 {difference:E2} > {tolerance:E1}");
    }
}
