using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Ops;

/// <summary>Float8 on the CPU: the rounding of arXiv 2209.05433, and linear layers that use it.</summary>
public sealed class Float8Tests(ITestOutputHelper output)
{
    /// <summary>A matrix whose largest magnitude is the format's largest number has a scale of 1, so what goes in is rounded as it stands.</summary>
    public static TheoryData<Float8Kind, float, float> Roundings => new()
    {
        { Float8Kind.E4M3, 17, 16 }, { Float8Kind.E4M3, 19, 20 }, { Float8Kind.E4M3, -18.5f, -18 }, { Float8Kind.E4M3, 0.001953125f, 0.001953125f }, { Float8Kind.E4M3, 0.0009765625f, 0 },
        { Float8Kind.E5M2, 17, 16 }, { Float8Kind.E5M2, 18, 16 }, { Float8Kind.E5M2, 22, 24 }, { Float8Kind.E5M2, -1.1f, -1 },
    };

    [Theory, MemberData(nameof(Roundings))]
    public void Round_ScaleOne_NearestAndTiesToEven(Float8Kind kind, float value, float expected) => Run(_ =>
    {
        var x = zeros([16, 16], ScalarType.Float32);
        x[0, 0] = Float8.Largest(kind);
        x[7, 3] = value;
        var rounded = Float8.Round(x, Float8.LargestMagnitude(x), kind);
        Assert.Equal(1, rounded.Unit.item<float>());
        Assert.Equal(expected, rounded.Matrix[7, 3].item<float>());
        Assert.Equal(Float8.Largest(kind), rounded.Matrix[0, 0].item<float>());
    });

    [Theory, InlineData(Float8Kind.E4M3, 1 / 16.0), InlineData(Float8Kind.E5M2, 1 / 8.0)]
    public void Round_AnySize_RelativeErrorIsHalfAStep(Float8Kind kind, double step) => Run(generator =>
    {
        foreach (var size in (double[])[1e-20, 1e-3, 1, 1e6])
        {
            var x = rand([64, 48], ScalarType.Float32, generator: generator).add(0.1).mul(size); // a factor of 11 between them: no subnormal numbers
            var rounded = Float8.Round(x, Float8.LargestMagnitude(x), kind);
            var worst = rounded.Matrix.mul(rounded.Unit).sub(x).div(x).abs().max().item<float>();
            Assert.True(worst <= step * (1 + 1e-4), $"relative error {worst} of values near {size}");
        }
    });

    [Fact]
    public void Round_Zeros_StayZeros() => Run(_ =>
    {
        var x = zeros([16, 32], ScalarType.Float32);
        var rounded = Float8.Round(x, Float8.LargestMagnitude(x), Float8Kind.E4M3);
        Assert.Equal(0, rounded.Matrix.abs().max().item<float>());
        Assert.Equal(1, rounded.Unit.item<float>());
    });

    [Theory, InlineData(Float8Format.E4M3), InlineData(Float8Format.Hybrid)]
    public void LinearProducts_Float8_AreThoseOfTheRoundedFactors(Float8Format format) => Run(generator =>
    {
        var gradKind = format == Float8Format.Hybrid ? Float8Kind.E5M2 : Float8Kind.E4M3;
        var (x, grad, weightData) = (Random(generator, 96, 48), Random(generator, 96, 80), Random(generator, 80, 48));
        var mainGrad = randn([80, 48], ScalarType.Float32, generator: generator);
        var added = mainGrad.clone();
        using var context = new ForwardContext(TestBatches.Random(new Random(1), 10, [4]), CPU, step: 0, isTraining: true, lossFactor: 1, auxiliaryLossFactor: 0);
        using var saved = new Saved(context);
        using var weight = new Parameter("weight", weightData.clone(), [TensorBlock.Whole("weight", 80, 48)], new ParameterTraits { Decays = true })
        {
            GradientSlot = new GradientSlot(0, [80, 48], mainGrad),
        };
        var products = new LinearProducts(weight, bias_O: null, new ProductOptions { Float8 = format });
        var (x8, w8, g8) = (Rounded(x, Float8Kind.E4M3), Rounded(weightData, Float8Kind.E4M3), Rounded(grad, gradKind));
        Near("output", products.Output(x, saved), x8.mm(w8.t()));
        Assert.True(products.KeepsGradient(grad));
        Near("input gradient", products.InputGradient(grad, saved), g8.mm(w8));
        products.AddKeptGradient(x, saved);
        Near("weight gradient", mainGrad, added.add(g8.t().mm(x8)));
        Assert.Equal(0, saved.SizeBytes);
    });

    [Fact]
    public void LinearProducts_Float8OutsideTraining_TakesTheWeightsAsTheyAre() => Run(generator =>
    {
        var (x, weightData) = (Random(generator, 32, 48), Random(generator, 80, 48));
        using var context = new ForwardContext(TestBatches.Random(new Random(1), 10, [4]), CPU, step: 0, isTraining: false, lossFactor: 1, auxiliaryLossFactor: 0);
        using var saved = new Saved(context);
        using var weight = new Parameter("weight", weightData.clone(), [TensorBlock.Whole("weight", 80, 48)], new ParameterTraits { Decays = true });
        var products = new LinearProducts(weight, bias_O: null, new ProductOptions { Float8 = Float8Format.Hybrid });
        Near("output", products.Output(x, saved), x.mm(weightData.t()));
        Assert.Equal(0, saved.SizeBytes);
    });

    [Fact]
    public void Takes_ExtentsThatDoNotDivide_StayInTheModelsDtype()
    {
        using var scope = NewDisposeScope();
        Assert.True(Float8.Takes(zeros(32, 48)));
        Assert.False(Float8.Takes(zeros(31, 48)));
        Assert.False(Float8.Takes(zeros(32, 40)));
    }

    private void Run(Action<Generator> test)
    {
        using var leaks = LeakCheck.Start();
        var seed = Environment.TickCount;
        output.WriteLine($"seed {seed}");
        using var scope = NewDisposeScope();
        using var generator = new Generator((ulong)seed, CPU);
        test(generator);
    }

    private static Tensor Random(Generator generator, long rows, long columns) => randn([rows, columns], ScalarType.Float32, generator: generator);

    private static Tensor Rounded(Tensor x, Float8Kind kind)
    {
        var rounded = Float8.Round(x, Float8.LargestMagnitude(x), kind);
        return rounded.Matrix.mul(rounded.Unit);
    }

    private static void Near(string what, Tensor actual, Tensor expected)
    {
        var difference = actual.sub(expected).norm().item<float>() / expected.norm().item<float>();
        Assert.True(difference < 1e-5, $"{what}: relative L2 {difference}");
    }
}
