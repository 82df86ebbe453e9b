using Megatron.Compute.Distributed;
using Megatron.Compute.Tests.Distributed;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Gpu;

/// <summary>
/// The contract of process groups between the GPUs of this machine, one rank thread each. Sizes beyond the number of GPUs are skipped by name.
/// </summary>
[Trait("Category", "gpu"), Collection<Alone>] // alone: some tests measure how fast an abort releases a rank
public sealed class NcclProcessGroupTests : ProcessGroupContract
{
    protected override Device DeviceOf(int rank) => new(TorchSharp.DeviceType.CUDA, rank);

    protected override IContractWorld CreateWorld(int size, TimeSpan timeout)
    {
        Assert.SkipUnless(Megatron.Testing.Gpu.Has(size), Megatron.Testing.Gpu.WhyFewerThan(size));
        return new World(size, timeout);
    }

    private sealed class World : IContractWorld
    {
        private readonly NcclWorld[] worlds;

        public IReadOnlyList<ProcessGroup> Groups { get; }

        public World(int size, TimeSpan timeout)
        {
            var store = new InProcessRendezvousStore();
            var libTorch = TorchTestSetup.EnsureLoaded();
            worlds = [.. Enumerable.Range(0, size).Select(rank => new NcclWorld(
                store, new NcclWorldOptions { Attempt = "test/1", Device = rank, SharesProcess = true, Timeout = timeout, JoinTimeout = TimeSpan.FromSeconds(60) }, libTorch))];
            var groups = new ProcessGroup[size];
            RankThreads.Run(size, rank => groups[rank] = size == 1
                ? new SingleRankGroup("test", rank) : worlds[rank].Create("test", rank, [.. Enumerable.Range(0, size)]));
            foreach (var group in groups) group.IsWarmingUp = false; // the contract is that of the steps after
            Groups = groups;
        }

        public void Dispose()
        {
            RankThreads.Run(Groups.Count, rank => Groups[rank].Dispose());
            foreach (var world in worlds) world.Dispose();
        }
    }
}
