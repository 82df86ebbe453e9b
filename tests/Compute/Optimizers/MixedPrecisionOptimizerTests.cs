using Megatron.Compute.Optimizers;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Optimizers;

/// <summary>Against a plain double-precision loop over each parameter on its own: no flat buffers, no chunks.</summary>
public sealed class MixedPrecisionOptimizerTests(ITestOutputHelper output)
{
    private const int NumSteps = 6;

    // Weights stay below 8, where half an ulp of fp32 is 2.4e-7; each step rounds twice (decay, update).
    private const double RoundingTolerance = 2 * NumSteps * 2.4e-7;

    [Theory]
    [InlineData(0.05)] // the norm is about 14: clipped in every step
    [InlineData(0.001)] // the norm is about 0.28: never clipped
    public void Step_AdamFp32_FollowsDoubleOracle(double gradientSize)
    {
        using var leaks = LeakCheck.Start();
        using var fixture = new OptimizerFixture(Seed(11), OptimizerFixture.Adam, ScalarType.Float32);
        var oracle = new AdamOracle(fixture);
        for (var step = 1; step <= NumSteps; step++)
        {
            var gradients = fixture.SetGradients(gradientSize);
            var result = fixture.Optimizer.Step(1e-2 / step);
            var expectedNorm = oracle.Step(gradients, 1e-2 / step, OptimizerFixture.Adam, step);
            Assert.Equal(expectedNorm, result.GradNorm, expectedNorm * 1e-6);
            Assert.Equal(Math.Min(1, 1 / (expectedNorm + 1e-6)), result.ClipFactor, 1e-6);
            Assert.False(result.IsSkipped);
        }
        oracle.AssertWeights(fixture, RoundingTolerance);
        Assert.Equal(NumSteps, fixture.Optimizer.StepCount);
    }

    [Fact]
    public void Step_AdamBf16_KeepsFp32MastersAndRoundsOnce()
    {
        using var leaks = LeakCheck.Start();
        using var fixture = new OptimizerFixture(Seed(12), OptimizerFixture.Adam, ScalarType.BFloat16);
        var oracle = new AdamOracle(fixture);
        for (var step = 1; step <= NumSteps; step++)
        {
            var gradients = fixture.SetGradients(0.05);
            fixture.Optimizer.Step(1e-5); // far below bf16's resolution: only the masters can add it up
            oracle.Step(gradients, 1e-5, OptimizerFixture.Adam, step);
        }
        foreach (var range in fixture.Optimizer.State)
        {
            var expected = oracle.Weights[Array.IndexOf(fixture.Parameters, range.Parameter)];
            AssertClose(expected, OptimizerFixture.Read(range.Master), RoundingTolerance);
            using var rounded = range.Master.to_type(ScalarType.BFloat16);
            Assert.Equal(OptimizerFixture.Read(rounded), OptimizerFixture.Read(range.Parameter.Data));
        }
    }

    [Fact]
    public void Step_Sgd_FollowsDoubleOracle()
    {
        using var leaks = LeakCheck.Start();
        var options = OptimizerFixture.Adam with { Kind = OptimizerKind.Sgd, ClipGrad = 0 };
        using var fixture = new OptimizerFixture(Seed(13), options, ScalarType.Float32);
        var weights = fixture.Parameters.Select(parameter => OptimizerFixture.Read(parameter.Data)).ToArray();
        var momentum = weights.Select(values => new double[values.Length]).ToArray();
        for (var step = 1; step <= NumSteps; step++)
        {
            var gradients = fixture.SetGradients(0.5);
            Assert.Equal(1, fixture.Optimizer.Step(1e-2).ClipFactor);
            for (var i = 0; i < weights.Length; i++)
                for (var j = 0; j < weights[i].Length; j++)
                {
                    var decay = fixture.Parameters[i].Traits.Decays ? options.WeightDecay : 0;
                    momentum[i][j] = 0.9 * momentum[i][j] + gradients[i][j] + decay * weights[i][j];
                    weights[i][j] -= 1e-2 * momentum[i][j];
                }
        }
        for (var i = 0; i < weights.Length; i++) AssertClose(weights[i], OptimizerFixture.Read(fixture.Parameters[i].Data), RoundingTolerance);
    }

    [Fact]
    public void Step_ZeroGradient_DecaysOnlyMatrices()
    {
        using var leaks = LeakCheck.Start();
        using var fixture = new OptimizerFixture(Seed(14), OptimizerFixture.Adam, ScalarType.Float32);
        var before = fixture.Parameters.Select(parameter => OptimizerFixture.Read(parameter.Data)).ToArray();
        fixture.Optimizer.Step(0.5);
        for (var i = 0; i < before.Length; i++)
        {
            var factor = fixture.Parameters[i].Traits.Decays ? 1 - 0.5 * 0.1 : 1;
            AssertClose([.. before[i].Select(value => value * factor)], OptimizerFixture.Read(fixture.Parameters[i].Data), 1e-6);
        }
    }

    [Fact]
    public void Step_LearningRateZero_MovesMomentsButNoWeight()
    {
        using var leaks = LeakCheck.Start();
        using var fixture = new OptimizerFixture(Seed(15), OptimizerFixture.Adam, ScalarType.Float32);
        var before = fixture.Parameters.Select(parameter => OptimizerFixture.Read(parameter.Data)).ToArray();
        fixture.SetGradients(1);
        fixture.Optimizer.Step(0);
        for (var i = 0; i < before.Length; i++) Assert.Equal(before[i], OptimizerFixture.Read(fixture.Parameters[i].Data));
        Assert.All(fixture.Optimizer.State, range => Assert.Contains(OptimizerFixture.Read(range.ExpAvg), value => value != 0));
        Assert.Equal(1, fixture.Optimizer.StepCount);
    }

    [Theory]
    [InlineData(float.NaN)]
    [InlineData(float.PositiveInfinity)]
    public void Step_NonFiniteGradient_ChangesNothingAndCounts(float bad)
    {
        using var leaks = LeakCheck.Start();
        using var fixture = new OptimizerFixture(Seed(16), OptimizerFixture.Adam, ScalarType.BFloat16);
        var before = fixture.Parameters.Select(parameter => OptimizerFixture.Read(parameter.Data)).ToArray();
        fixture.SetGradients(1);
        using (var row = fixture.Parameters[3].MainGrad.narrow(0, 2, 1)) row.fill_(bad);
        var result = fixture.Optimizer.Step(1e-2);
        Assert.True(result.IsSkipped);
        Assert.False(double.IsFinite(result.GradNorm));
        Assert.Equal((0L, 1L, 0L), (fixture.Optimizer.StepCount, fixture.Optimizer.NumNanSteps, fixture.Optimizer.NumSkippedSteps));
        for (var i = 0; i < before.Length; i++) Assert.Equal(before[i], OptimizerFixture.Read(fixture.Parameters[i].Data));
        Assert.All(fixture.Optimizer.State, range => Assert.All(OptimizerFixture.Read(range.ExpAvg), value => Assert.Equal(0, value)));
    }

    [Fact]
    public void Step_Fp16LossScale_DividesGradientAndBacksOffOnOverflow()
    {
        using var leaks = LeakCheck.Start();
        var scaler = new LossScaler(new LossScalerOptions { InitialLossScale = 1024, Hysteresis = 1 });
        using var fixture = new OptimizerFixture(Seed(17), OptimizerFixture.Adam, ScalarType.Float16, scaler);
        var oracle = new AdamOracle(fixture);
        var gradients = fixture.SetGradients(51.2);
        var result = fixture.Optimizer.Step(1e-2);
        var unscaled = gradients.Select(values => values.Select(value => value / 1024).ToArray()).ToArray();
        Assert.Equal(oracle.Step(unscaled, 1e-2, OptimizerFixture.Adam, 1), result.GradNorm, 1e-4);
        Assert.Equal(1024, result.LossScale);
        foreach (var range in fixture.Optimizer.State)
            AssertClose(oracle.Weights[Array.IndexOf(fixture.Parameters, range.Parameter)], OptimizerFixture.Read(range.Master), 1e-5);

        fixture.Parameters[0].MainGrad.fill_(float.PositiveInfinity);
        Assert.True(fixture.Optimizer.Step(1e-2).IsSkipped);
        Assert.Equal((512.0, 1L, 0L), (fixture.Optimizer.LossScale, fixture.Optimizer.NumSkippedSteps, fixture.Optimizer.NumNanSteps));
    }

    [Fact]
    public void State_CopiedToAnotherOptimizer_ContinuesBitwise()
    {
        using var leaks = LeakCheck.Start();
        using var first = new OptimizerFixture(Seed(18), OptimizerFixture.Adam, ScalarType.BFloat16);
        first.SetGradients(0.1);
        first.Optimizer.Step(1e-3);
        using var second = new OptimizerFixture(99, OptimizerFixture.Adam, ScalarType.BFloat16);
        foreach (var (source, target) in first.Optimizer.State.Zip(second.Optimizer.State))
        {
            Assert.Equal((source.Parameter.Name, source.Range), (target.Parameter.Name, target.Range));
            target.Master.copy_(source.Master);
            target.ExpAvg.copy_(source.ExpAvg);
            target.ExpAvgSq?.copy_(source.ExpAvgSq ?? throw new InvalidOperationException("no second moment"));
        }
        second.Optimizer.StepCount = first.Optimizer.StepCount;
        second.Optimizer.CopyMastersToModel();
        for (var i = 0; i < first.Parameters.Length; i++)
        {
            AssertSame(first.Parameters[i].Data, second.Parameters[i].Data);
            using var gradient = randn(first.Parameters[i].Shape);
            first.Parameters[i].MainGrad.copy_(gradient);
            second.Parameters[i].MainGrad.copy_(gradient);
        }
        Assert.Equal(first.Optimizer.Step(1e-3), second.Optimizer.Step(1e-3));
        for (var i = 0; i < first.Parameters.Length; i++) AssertSame(first.Parameters[i].Data, second.Parameters[i].Data);
    }

    [Fact]
    public void CopyModelToMasters_AfterWeightsWereLoaded_TakesThem()
    {
        using var leaks = LeakCheck.Start();
        using var fixture = new OptimizerFixture(Seed(19), OptimizerFixture.Adam, ScalarType.BFloat16);
        fixture.Parameters[3].Data.fill_(0.5);
        fixture.Optimizer.CopyModelToMasters();
        var range = fixture.Optimizer.State.Single(candidate => candidate.Parameter.Name == "linear");
        Assert.All(OptimizerFixture.Read(range.Master), value => Assert.Equal(0.5, value));
    }

    private static void AssertSame(Tensor expected, Tensor actual) => Assert.Equal(OptimizerFixture.Read(expected), OptimizerFixture.Read(actual));

    private static void AssertClose(double[] expected, double[] actual, double tolerance)
    {
        Assert.Equal(expected.Length, actual.Length);
        for (var i = 0; i < expected.Length; i++)
            Assert.True(Math.Abs(expected[i] - actual[i]) <= tolerance, $"element {i}: expected {expected[i]:R}, got {actual[i]:R}");
    }

    private int Seed(int seed)
    {
        output.WriteLine($"seed {seed}");
        return seed;
    }

    private sealed class AdamOracle
    {
        private readonly bool[] decays;
        private readonly double[][] expAvg;
        private readonly double[][] expAvgSq;

        public double[][] Weights { get; }

        public AdamOracle(OptimizerFixture fixture)
        {
            decays = [.. fixture.Parameters.Select(parameter => parameter.Traits.Decays)];
            Weights = [.. fixture.Parameters.Select(parameter => OptimizerFixture.Read(parameter.Data))];
            expAvg = [.. Weights.Select(values => new double[values.Length])];
            expAvgSq = [.. Weights.Select(values => new double[values.Length])];
        }

        /// <summary>One step on a copy of the gradients; returns the norm before clipping.</summary>
        public double Step(double[][] gradients, double lr, OptimizerOptions options, int step)
        {
            var norm = Math.Sqrt(gradients.Sum(values => values.Sum(value => value * value)));
            var clip = Math.Min(1, options.ClipGrad / (norm + 1e-6));
            for (var i = 0; i < Weights.Length; i++)
                for (var j = 0; j < Weights[i].Length; j++)
                {
                    var g = gradients[i][j] * clip;
                    expAvg[i][j] = options.AdamBeta1 * expAvg[i][j] + (1 - options.AdamBeta1) * g;
                    expAvgSq[i][j] = options.AdamBeta2 * expAvgSq[i][j] + (1 - options.AdamBeta2) * g * g;
                    var mHat = expAvg[i][j] / (1 - Math.Pow(options.AdamBeta1, step));
                    var vHat = expAvgSq[i][j] / (1 - Math.Pow(options.AdamBeta2, step));
                    Weights[i][j] -= lr * (mHat / (Math.Sqrt(vHat) + options.AdamEps) + (decays[i] ? options.WeightDecay : 0) * Weights[i][j]);
                }
            return norm;
        }

        public void AssertWeights(OptimizerFixture fixture, double tolerance)
        {
            for (var i = 0; i < Weights.Length; i++) AssertClose(Weights[i], OptimizerFixture.Read(fixture.Parameters[i].Data), tolerance);
        }
    }
}
