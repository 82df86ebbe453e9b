using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Optimizers;

public sealed class FlatLayoutTests
{
    [Fact]
    public void Create_MixedParameters_PutsDenseBeforeExpertAndDecayedFirst()
    {
        using var leaks = LeakCheck.Start();
        Parameter[] parameters =
        [
            Make("norm", false, false, 10), Make("expert.bias", false, true, 3), Make("linear", true, false, 8, 9), Make("expert", true, true, 4, 4),
        ];
        var layout = FlatLayout.Create(parameters, ParallelState.SingleRank());
        Assert.Equal(["linear", "norm", "expert", "expert.bias"], layout.Entries.Select(entry => entry.Parameter.Name));
        Assert.Equal([(0L, 72L), (128L, 138L), (192L, 208L), (256L, 259L)], layout.Entries.Select(entry => (entry.Range.Begin, entry.Range.End)));
        Assert.Equal([new FlatRange(0, 192), new FlatRange(192, 320)], layout.Buckets.Select(bucket => bucket.Range));
        Assert.Equal([new FlatRange(0, 128), new FlatRange(192, 256)], layout.Buckets.Select(bucket => bucket.Decayed));
        Assert.Equal(320, layout.NumElements);
        foreach (var parameter in parameters) parameter.Dispose();
    }

    [Fact]
    public void Create_SmallBuckets_FillsThemFromTheEndAndKeepsTiedWeightsAlone()
    {
        using var leaks = LeakCheck.Start();
        Parameter[] parameters =
        [
            Make("tied", true, false, 10, 10, isTied: true), Make("a", true, false, 8, 8), Make("a.norm", false, false, 8), Make("b.norm", false, false, 8),
            Make("b", true, false, 8, 8), Make("c", true, false, 8, 8),
        ];
        var layout = FlatLayout.Create(parameters, ParallelState.SingleRank(), bucketElements: 100);
        string[][] expected = [["tied"], ["a", "a.norm", "b.norm"], ["b", "c"]];
        Assert.Equal(expected, layout.Buckets.Select(bucket => bucket.Entries.Select(entry => entry.Parameter.Name).ToArray()));
        Assert.Equal([(0L, 128L), (128L, 320L), (320L, 448L)], layout.Buckets.Select(bucket => (bucket.Range.Begin, bucket.Range.End)));
        Assert.Equal([(0L, 128L), (128L, 192L), (320L, 448L)], layout.Buckets.Select(bucket => (bucket.Decayed.Begin, bucket.Decayed.End)));
        foreach (var parameter in parameters) parameter.Dispose();
    }

    [Fact]
    public void CreateGradientBuffer_EveryParameter_GetsItsView()
    {
        using var leaks = LeakCheck.Start();
        Parameter[] parameters = [Make("norm", false, false, 10), Make("linear", true, false, 8, 9)];
        var layout = FlatLayout.Create(parameters, ParallelState.SingleRank());
        using (var buffer = layout.CreateGradientBuffer(CPU, 1))
        {
            foreach (var parameter in parameters) parameter.MainGrad.fill_(1);
            Assert.Equal([8L, 9L], parameters[1].MainGrad.shape);
            using var sum = buffer.Flat.sum();
            Assert.Equal(82f, sum.item<float>());
        }
        foreach (var parameter in parameters) parameter.Dispose();
    }

    [Fact]
    public void SumOfSquares_ManyRanges_EqualsDoubleSum()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var flat = randn(20_000);
        FlatRange[] ranges = [new(0, 1), new(64, 64 + 4096), new(5000, 19_999)];
        var values = flat.data<float>().ToArray();
        var expected = ranges.Sum(range => Enumerable.Range((int)range.Begin, (int)range.Length).Sum(i => (double)values[i] * values[i]));
        Assert.Equal(expected, GradientNorm.SumOfSquares(flat, ranges).item<double>(), expected * 1e-6);
    }

    [Fact]
    public void CountedRanges_SharedDuplicate_IsLeftOut()
    {
        using var leaks = LeakCheck.Start();
        Parameter[] parameters =
        [
            Make("a", true, false, 100), Make("b", true, false, 64), Make("tied", true, false, 10, 10, isDuplicate: true), Make("norm", false, false, 7),
        ];
        var ranges = GradientNorm.CountedRanges(FlatLayout.Create(parameters, ParallelState.SingleRank()), ParallelState.SingleRank(), isSharded: false);
        Assert.Equal([new FlatRange(0, 192), new FlatRange(320, 327)], ranges);
        foreach (var parameter in parameters) parameter.Dispose();
    }

    [Theory]
    [InlineData(0.5, 1.0, 1.0)]
    [InlineData(4.0, 1.0, 1.0 / (4.0 + 1e-6))]
    [InlineData(4.0, 0.0, 1.0)]
    [InlineData(0.9999999, 1.0, 1.0 / (0.9999999 + 1e-6))]
    public void Factor_NormAndLimit_FollowsRule(double norm, double limit, double expected) =>
        Assert.Equal(expected, GradientClipping.Factor(norm, limit), 1e-15);

    private static Parameter Make(string name, bool decays, bool isExpert, long rows, long columns = 0, bool isDuplicate = false, bool isTied = false)
    {
        long[] shape = columns == 0 ? [rows] : [rows, columns];
        var traits = new ParameterTraits { Decays = decays, IsExpert = isExpert, IsSharedDuplicate = isDuplicate, IsTied = isTied };
        return new Parameter(name, ones(shape), [TensorBlock.Whole(name, shape)], traits);
    }
}
