using Megatron.Compute.Native;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Native;

public sealed class CpuFlashAttentionTests
{
    [Theory]
    [InlineData(2, 4, 4, 33, 16, true, ScalarType.Float32, 2e-5)]
    [InlineData(2, 4, 4, 33, 16, false, ScalarType.Float32, 2e-5)]
    [InlineData(1, 2, 2, 600, 64, true, ScalarType.Float32, 2e-5)]
    [InlineData(2, 3, 3, 17, 8, true, ScalarType.Float64, 1e-11)]
    [InlineData(1, 2, 2, 40, 32, true, ScalarType.BFloat16, 4e-2)]
    [InlineData(2, 4, 2, 33, 16, true, ScalarType.Float32, 2e-5)]
    [InlineData(2, 6, 2, 33, 16, true, ScalarType.Float64, 1e-11)]
    [InlineData(1, 4, 1, 600, 64, true, ScalarType.Float32, 2e-5)]
    public void ForwardAndBackward_AgreeWithTheFormula(int b, int h, int hkv, int s, int d, bool causal, ScalarType dtype, double tolerance)
    {
        const int seed = 1234;
        TestContext.Current.SendDiagnosticMessage($"seed {seed}");
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var generator = new Generator(seed); // the global one is shared with tests on other threads
        var q = randn(b, h, s, d, dtype: ScalarType.Float64, generator: generator).to(dtype);
        var k = randn(b, hkv, s, d, dtype: ScalarType.Float64, generator: generator).to(dtype);
        var v = randn(b, hkv, s, d, dtype: ScalarType.Float64, generator: generator).to(dtype);
        var gradOutput = randn(b, h, s, d, dtype: ScalarType.Float64, generator: generator).to(dtype);
        var scale = 1 / Math.Sqrt(d);

        var (output, logSumExp) = CpuFlashAttention.Forward(q, k, v, causal, scale);
        var (gradQ, gradK, gradV) = CpuFlashAttention.Backward(gradOutput, q, k, v, output, logSumExp, causal, scale);

        var expected = Reference(q, k, v, gradOutput, causal, scale);
        AssertClose("output", expected.Output, output, tolerance);
        AssertClose("gradQ", expected.GradQ, gradQ, tolerance);
        AssertClose("gradK", expected.GradK, gradK, tolerance);
        AssertClose("gradV", expected.GradV, gradV, tolerance);
    }

    [Fact]
    public void ManyCalls_KeepNoTensor()
    {
        using var leaks = LeakCheck.Start();
        for (var index = 0; index < 20; index++)
        {
            using var scope = NewDisposeScope();
            var q = randn(1, 2, 8, 4);
            var (output, logSumExp) = CpuFlashAttention.Forward(q, q, q, isCausal: true, 0.5);
            CpuFlashAttention.Backward(output, q, q, q, output, logSumExp, isCausal: true, 0.5);
        }
    }

    /// <summary>The formula in double precision with libtorch's autograd, on leaves of the inputs' rounded values.</summary>
    private static (Tensor Output, Tensor GradQ, Tensor GradK, Tensor GradV) Reference(Tensor q, Tensor k, Tensor v, Tensor gradOutput, bool causal, double scale)
    {
        var leaves = new[] { q, k, v }.Select(input => input.to(ScalarType.Float64).clone().detach().requires_grad_()).ToArray();
        var repeats = q.shape[1] / k.shape[1];
        var scores = leaves[0].matmul(leaves[1].repeat_interleave(repeats, dim: 1).transpose(-2, -1)) * scale;
        if (causal)
        {
            var future = ones(q.shape[2], q.shape[2], dtype: ScalarType.Bool).triu(1);
            scores = scores.masked_fill(future, double.NegativeInfinity);
        }
        var output = scores.softmax(-1).matmul(leaves[2].repeat_interleave(repeats, dim: 1));
        output.backward([gradOutput.to(ScalarType.Float64)]);
        return (output.detach(), leaves[0].grad!, leaves[1].grad!, leaves[2].grad!); // set by backward
    }

    private static void AssertClose(string name, Tensor expected, Tensor actual, double tolerance)
    {
        var difference = (expected - actual.to(ScalarType.Float64)).abs().max().item<double>() / Math.Max(1, expected.abs().max().item<double>());
        Assert.True(difference <= tolerance, $"{name}: {difference:E2} > {tolerance:E1}");
    }
}
