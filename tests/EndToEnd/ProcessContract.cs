using System.Net;
using System.Reflection;
using Megatron.Compute.Distributed;
using Megatron.Compute.Tests.Distributed;

namespace Megatron.EndToEnd.Tests;

/// <summary>
/// The suite of every backend as a rank that is a process runs it: each process makes the same calls in the same order, and each world is an
/// attempt of its own at the rendezvous.
/// </summary>
internal sealed class ProcessContract(int rank, IRendezvousStore store) : ProcessGroupContract
{
    /// <summary>Their ranks signal each other through the memory of one process.</summary>
    private static readonly string[] ofOneProcess =
        [nameof(Start_PeerNotThereYet_ReturnsAtOnceAndWaitCompletesIt), nameof(Barrier_ReturnsOnlyAfterAllCalled), nameof(Abort_FromAnotherThread_ReleasesEveryCallerWithinASecond)];

    private static readonly TimeSpan joinTimeout = TimeSpan.FromSeconds(60);

    private int numWorlds;

    /// <summary>Runs every test for this number of ranks; throws what the first one throws that fails.</summary>
    /// <returns>How many have passed.</returns>
    public int RunAll(int size)
    {
        var numPassed = 0;
        var tests = typeof(ProcessGroupContract).GetMethods(BindingFlags.Public | BindingFlags.Instance | BindingFlags.DeclaredOnly)
            .Where(method => method.IsDefined(typeof(FactAttribute)) && !ofOneProcess.Contains(method.Name)).OrderBy(method => method.Name, StringComparer.Ordinal);
        foreach (var test in tests)
            foreach (var arguments in ArgumentsOf(test, size))
            {
                test.Invoke(this, BindingFlags.DoNotWrapExceptions, null, arguments, null);
                numPassed++;
            }
        return numPassed;
    }

    // On this thread: others could not enter this assembly while its initializer runs. A failure ends the process, which the peers see.
    protected override void RunRanks(int size, Action<int> body, Action<Exception>? onFailure = null) => body(rank);

    protected override IContractWorld CreateWorld(int size, TimeSpan timeout) => new World(size, rank, new TcpWorld(store, new TcpWorldOptions
    {
        Attempt = $"contract/{++numWorlds}", Rank = rank, Address = IPAddress.Loopback, Timeout = timeout, JoinTimeout = joinTimeout,
    }));

    private static IEnumerable<object[]> ArgumentsOf(MethodInfo test, int size) => test.GetParameters().Length switch
    {
        0 => size == 4 ? [[]] : [], // it opens four ranks
        1 => [[size]],
        _ => SizesAndDtypes.Select(row => row.Data).Where(row => row.Item1 == size).Select(row => new object[] { row.Item1, row.Item2 }),
    };

    private sealed class World : IContractWorld
    {
        private readonly TcpWorld world;
        private readonly ProcessGroup group;

        /// <summary>This process has one rank, whose end stands for all.</summary>
        public IReadOnlyList<ProcessGroup> Groups { get; }

        public World(int size, int rank, TcpWorld world)
        {
            (this.world, group) = (world, world.Create("contract", rank, [.. Enumerable.Range(0, size)]));
            Groups = [.. Enumerable.Repeat(group, size)];
        }

        public void Dispose()
        {
            group.Dispose();
            world.Dispose();
        }
    }
}
