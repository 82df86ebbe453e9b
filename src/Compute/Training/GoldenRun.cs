using System.Runtime.ExceptionServices;
using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Native;

namespace Megatron.Compute.Training;

/// <summary>Runs a <see cref="GoldenVerifier"/> on each rank of a layout, the ranks being threads of this process.</summary>
public static class GoldenRun
{
    private static readonly TimeSpan CollectiveTimeout = TimeSpan.FromMinutes(30);

    /// <summary>Runs all comparisons and writes the dump that the configuration asks for.</summary>
    /// <param name="config">Golden folder, layout, micro-batch size, dtype, recompute; hyperparameters come from the folder.</param>
    /// <param name="worldSize">Number of ranks; a single one runs on the calling thread.</param>
    /// <param name="environment">Where libtorch is, and each rank's share of the cores.</param>
    /// <returns>What rank 0 found; all ranks compare the same values.</returns>
    /// <exception cref="ConfigException">The folder or the layout cannot be used.</exception>
    public static IReadOnlyList<GoldenCheck> Run(TrainingConfig config, int worldSize, RankEnvironment environment)
    {
        var resolved = GoldenVerifier.Resolve(config, worldSize);
        var world = new LoopbackWorld(CollectiveTimeout);
        var results = new IReadOnlyList<GoldenCheck>[worldSize];
        if (worldSize == 1) return RunRank(resolved, worldSize, 0, world, environment);
        var failures = new List<Exception>();
        var threads = new Thread[worldSize];
        for (var i = 0; i < worldSize; i++)
        {
            var rank = i;
            threads[rank] = new Thread(() =>
            {
                try
                {
                    results[rank] = RunRank(resolved, worldSize, rank, world, environment);
                }
                catch (Exception failure)
                {
                    lock (failures) failures.Add(failure);
                    world.Abort($"rank {rank} failed: {failure.Message}");
                }
            })
            { Name = $"rank-{rank}", IsBackground = true };
            threads[rank].Start();
        }
        foreach (var thread in threads) thread.Join();
        if (failures.Count > 0) ExceptionDispatchInfo.Throw(failures[0]); // the others follow from it
        return results[0];
    }

    private static IReadOnlyList<GoldenCheck> RunRank(TrainingConfig config, int worldSize, int rank, LoopbackWorld world, RankEnvironment environment)
    {
        var device = CudaDevices.Choose(config.Device, rank, environment.PrepareThread());
        using var parallel = ParallelState.Create(RunSettings.Dims(config, worldSize), rank, world, config.SequenceParallel);
        using var verifier = new GoldenVerifier(config, parallel, device);
        var checks = verifier.Run();
        if (rank == 0 && config.Dump is { } dump) verifier.WriteDump(dump);
        return checks;
    }
}
