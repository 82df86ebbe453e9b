using Megatron.Compute.Data;
using Megatron.Compute.Native;
using Megatron.Compute.Ops;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Gpu;

/// <summary>cuDNN and flash attention against matrix products and a softmax in fp32, forward and backward; products accumulated in fp32.</summary>
[Trait("Category", "gpu")]
public sealed class AttentionTests(ITestOutputHelper output)
{
    public static TheoryData<string, ScalarType> Backends => new()
    {
        { "Fused", ScalarType.BFloat16 }, { "Flash", ScalarType.BFloat16 }, { "Auto", ScalarType.BFloat16 }, { "Fused", ScalarType.Float16 }, { "Flash", ScalarType.Float16 },
    };

    [Theory, MemberData(nameof(Backends))]
    public void Attention_EqualSegments_EqualsUnfused(string backend, ScalarType dtype) =>
        Run(backend, dtype, random => [.. Enumerable.Repeat(16 * random.Next(1, 40), random.Next(1, 4))]);

    [Theory, MemberData(nameof(Backends))]
    public void Attention_PackedSegments_EqualsUnfused(string backend, ScalarType dtype) =>
        Run(backend, dtype, random => [.. Enumerable.Range(0, random.Next(2, 6)).Select(_ => random.Next(1, 400))]);

    [Fact]
    public void WeightGradient_Bf16Product_AccumulatesInFp32()
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var left = randn(300, 136, ScalarType.Float32, Megatron.Testing.Gpu.Device).to_type(ScalarType.BFloat16);
        var right = randn(300, 72, ScalarType.Float32, Megatron.Testing.Gpu.Device).to_type(ScalarType.BFloat16);
        var target = randn(136, 72, ScalarType.Float32, Megatron.Testing.Gpu.Device);
        var expected = target.to_type(ScalarType.Float64) + left.to_type(ScalarType.Float64).t().mm(right.to_type(ScalarType.Float64));
        CudaBlas.AccumulateTransposed(target, left, right);
        var difference = (target - expected).norm().item<double>() / expected.norm().item<double>();
        Assert.True(difference < 1e-5, $"relative L2 {difference:E2}");
    }

    private void Run(string backend, ScalarType dtype, Func<Random, int[]> lengths)
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        var seed = Environment.TickCount;
        output.WriteLine($"seed {seed}");
        using var leaks = LeakCheck.Start();
        var random = new Random(seed);
        for (var i = 0; i < 6; i++)
        {
            using var scope = NewDisposeScope();
            var (groups, perGroup, width) = (random.Next(1, 5), random.Next(1, 5), new[] { 16, 32, 64, 128 }[random.Next(4)]);
            var shape = new AttentionShape(groups * perGroup, groups, width, FirstHead: 0, LayerIndex: 1);
            Compare(Enum.Parse<AttentionBackend>(backend), shape, dtype, lengths(random));
        }
    }

    private static void Compare(AttentionBackend backend, AttentionShape shape, ScalarType dtype, int[] lengths)
    {
        using var context = new ForwardContext(Row(lengths), Megatron.Testing.Gpu.Device, step: 0, isTraining: true, lossFactor: 1, auxiliaryLossFactor: 0);
        var tokens = lengths.Sum();
        var fused = randn([tokens, shape.NumHeads + 2 * shape.NumGroups, shape.HeadDim], ScalarType.Float32, Megatron.Testing.Gpu.Device).to_type(dtype);
        var grad = randn([tokens, shape.NumHeads, shape.HeadDim], ScalarType.Float32, Megatron.Testing.Gpu.Device).to_type(dtype);
        var (output, gradients) = Compute(backend, shape, context, fused, grad);
        var (expectedOutput, expectedGradients) = Compute(AttentionBackend.Unfused, shape, context, fused.to_type(ScalarType.Float32), grad.to_type(ScalarType.Float32));
        AssertClose($"{backend} output of {string.Join('+', lengths)} tokens, {shape}", output, expectedOutput);
        AssertClose($"{backend} gradients of {string.Join('+', lengths)} tokens, {shape}", gradients, expectedGradients);
    }

    private static (Tensor Output, Tensor Gradients) Compute(AttentionBackend backend, AttentionShape shape, ForwardContext context, Tensor fused, Tensor grad)
    {
        var options = new AttentionOptions { Backend = backend, SoftmaxInFp32 = true, QueryKeyLayerScaling = false };
        var attention = new CoreAttention(shape, options, dropout: 0, seed: 1, recompute: false);
        using var saved = new Saved(context);
        Tensor Part(Tensor x, int index) => index == 0 ? x.narrow(1, 0, shape.NumHeads) : x.narrow(1, shape.NumHeads + (index - 1) * shape.NumGroups, shape.NumGroups);
        var result = attention.Forward(Part(fused, 0), Part(fused, 1), Part(fused, 2), saved);
        var (gradQuery, gradKey, gradValue) = attention.Backward(grad, saved);
        Assert.Equal(0, saved.SizeBytes);
        return (result, cat([gradQuery, gradKey, gradValue], 1));
    }

    private static MicroBatch Row(int[] lengths)
    {
        var borders = new List<int> { 0 };
        foreach (var length in lengths) borders.Add(borders[^1] + length);
        var total = borders[^1];
        return new MicroBatch
        {
            TokenIds = new long[total],
            Labels = [.. Enumerable.Repeat((long)MicroBatch.IgnoreIndex, total)],
            Positions = [.. lengths.SelectMany(length => Enumerable.Range(0, length))],
            CuSeqLens = [.. borders],
            GlobalTokenIndex = [.. Enumerable.Range(0, total).Select(i => (long)i)],
            NumTargetTokens = 0,
        };
    }

    private static void AssertClose(string what, Tensor actual, Tensor expected)
    {
        var difference = actual.to_type(ScalarType.Float32).sub(expected).norm().item<float>() / expected.norm().item<float>();
        Assert.True(difference <= 1e-2, $"{what}: relative L2 {difference:E2}");
    }
}
