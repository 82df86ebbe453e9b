using Megatron.Compute.Optimizers;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Optimizers;

public sealed class AdamWHostTests(ITestOutputHelper output)
{
    [Theory, InlineData(1), InlineData(7), InlineData(65_537), InlineData(200_003)]
    public void Step_RandomValues_EqualsReference(int count)
    {
        var seed = (ulong)Environment.TickCount64;
        output.WriteLine($"seed {seed}");
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var generator = new Generator(seed, CPU);
        Tensor Random() => randn(count, float32, CPU, generator: generator);
        var (master, gradient, m, v) = (Random(), Random(), Random(), Random().square());
        var (expected, expectedM, expectedV) = (master.clone(), m.clone(), v.clone());
        var step = new AdamWStep(1e-2, 0.1, 0.9, 0.95, 1e-8, 3);
        AdamW.Reference(expected, gradient, expectedM, expectedV, step, 0.7);
        AdamWHost.Step(master, gradient, m, v, step, 0.7);
        foreach (var (actual, oracle) in (ReadOnlySpan<(Tensor, Tensor)>)[(master, expected), (m, expectedM), (v, expectedV)])
            Assert.True((actual - oracle).norm().item<float>() <= 1e-6f * oracle.norm().item<float>());
    }
}
