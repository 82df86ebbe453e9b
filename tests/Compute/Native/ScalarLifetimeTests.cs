using System.Diagnostics;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Native;

/// <summary>Numbers handed to libtorch must live until the call returns (docs/adr/0007-interned-scalars.md).</summary>
[Collection<Alone>] // it collects garbage without a pause
public sealed class ScalarLifetimeTests
{
    /// <summary>Many threads on few cores: one that is put aside between the call and libtorch's reading of the number meets the finalizer.</summary>
    [Fact]
    public void Operations_WithNumbers_WhileGarbageIsCollected_AreRight()
    {
        TorchTestSetup.EnsureLoaded();
        var isOver = false;
        var collector = new Thread(() =>
        {
            while (!Volatile.Read(ref isOver))
            {
                GC.Collect(0);
                GC.WaitForPendingFinalizers();
            }
        });
        collector.Start();
        try
        {
            RankThreads.Run(8 * Environment.ProcessorCount, _ => AddNumbers());
        }
        finally
        {
            Volatile.Write(ref isOver, true);
            collector.Join();
        }
    }

    private static void AddNumbers()
    {
        using var scope = NewDisposeScope();
        var (values, one) = (zeros(16, dtype: float32), ones(16, dtype: float32));
        var expected = 0.0;
        var started = Stopwatch.GetTimestamp();
        for (var i = 1; Stopwatch.GetElapsedTime(started) < TimeSpan.FromSeconds(3); i++)
        {
            using var step = NewDisposeScope();
            var number = i % 7;
            values.add_(one, alpha: number).mul_(0.5);
            expected = (expected + number) * 0.5;
            Assert.Equal(expected, values[^1].item<float>(), 1e-3);
        }
    }
}
