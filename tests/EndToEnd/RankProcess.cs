using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Runtime.CompilerServices;
using System.Security.Cryptography;
using Megatron.Compute.Distributed;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.EndToEnd.Tests;

/// <summary>
/// What a rank does when it is a process of its own: this test program, started again with <see cref="Variable"/> set, runs one of the
/// programs below and exits without running any test.
/// </summary>
internal static class RankProcess
{
    /// <summary>Environment variable: <c>PROGRAM RANK SIZE RENDEZVOUS_PORT</c>.</summary>
    public const string Variable = "MEGATRON_TEST_RANK_PROCESS";

    /// <summary>Exit code of a rank that got a <see cref="RankFaultException"/>.</summary>
    public const int FaultExitCode = 3;

    private static readonly TimeSpan patience = TimeSpan.FromSeconds(60);

    [ModuleInitializer]
    internal static void RunAndExitIfAsked()
    {
        if (Environment.GetEnvironmentVariable(Variable) is not { Length: > 0 } request) return;
        var words = request.Split(' ');
        Environment.Exit(Run(words[0], Parse(words[1]), Parse(words[2]), Parse(words[3])));
    }

    /// <summary>
    /// Reductions over every dtype and several sizes on seeded values; the hash of all results, which must be the same on all ranks, in
    /// every run and on every backend that promises the loopback backend's order.
    /// </summary>
    public static string HashOfSequence(ProcessGroup group)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (var dtype in (ScalarType[])[ScalarType.BFloat16, ScalarType.Float16, ScalarType.Float32, ScalarType.Float64])
            foreach (var count in (long[])[1, 7, 40_000, 1_000_003])
            {
                using var scope = NewDisposeScope();
                using var generator = new Generator((ulong)(1000 * group.Rank + count));
                var tensor = randn(count, generator: generator).to_type(dtype);
                using (group.AllReduce(tensor, ReduceOp.Sum)) { }
                using (group.AllReduce(tensor, ReduceOp.Average)) { }
                hash.AppendData(tensor.bytes);
                var own = empty(count, dtype: dtype);
                using (group.ReduceScatter(own, randn(count * group.Size, generator: generator).to_type(dtype), ReduceOp.Sum)) { }
                var gathered = empty(count * group.Size, dtype: dtype);
                using (group.AllGather(gathered, own)) { }
                hash.AppendData(gathered.bytes);
            }
        return Convert.ToHexString(hash.GetHashAndReset());
    }

    private static int Run(string program, int rank, int size, int port)
    {
        try
        {
            TorchTestSetup.EnsureLoaded();
            using var store = new TcpRendezvousStore("127.0.0.1", port, patience, patience, default);
            using var world = new TcpWorld(store, new TcpWorldOptions
            {
                Attempt = "processes/1", Rank = rank, Address = IPAddress.Loopback, Timeout = patience, JoinTimeout = patience,
            });
            using var group = world.Create("world", rank, [.. Enumerable.Range(0, size)]);
            Console.WriteLine(program switch
            {
                "contract" => FormattableString.Invariant($"{new ProcessContract(rank, store).RunAll(size)} passed"),
                "sequence" => HashOfSequence(group),
                "throughput" => Throughput(group),
                "forever" => Forever(group),
                "idle" => Idle(group),
                _ => throw new ArgumentException($"no program {program}"),
            });
            group.Barrier();
            return 0;
        }
        catch (RankFaultException fault)
        {
            Console.WriteLine($"fault {fault.CulpritRank} {fault.Message}");
            return FaultExitCode;
        }
    }

    /// <summary>Reduces until a peer dies.</summary>
    private static string Forever(ProcessGroup group)
    {
        using var tensor = ones(4 << 20, dtype: float32);
        for (var i = 0; ; i++)
        {
            using (group.AllReduce(tensor, ReduceOp.Max)) { }
            if (i == 2) Console.WriteLine("running");
        }
    }

    /// <summary>Has nothing under way until a line of input says that it shall reduce.</summary>
    private static string Idle(ProcessGroup group)
    {
        group.Barrier();
        Console.WriteLine("idle");
        Console.ReadLine();
        using var tensor = ones(8);
        using (group.AllReduce(tensor, ReduceOp.Sum)) { }
        return "reduced";
    }

    /// <summary>Best of five all-reduces of 64 MiB, in MB of tensor for each second.</summary>
    private static string Throughput(ProcessGroup group)
    {
        const long SizeBytes = 64 << 20;
        using var tensor = ones(SizeBytes / 4, dtype: float32);
        var best = TimeSpan.MaxValue;
        for (var i = 0; i < 6; i++)
        {
            group.Barrier();
            var started = Stopwatch.GetTimestamp();
            using (group.AllReduce(tensor, ReduceOp.Average)) { }
            var elapsed = Stopwatch.GetElapsedTime(started);
            if (i > 0 && elapsed < best) best = elapsed;
        }
        var isRight = tensor.eq(1f).all().item<bool>();
        return FormattableString.Invariant($"{(isRight ? "right" : "wrong")} {SizeBytes / 1e6 / best.TotalSeconds:F0} MB/s");
    }

    private static int Parse(string word) => int.Parse(word, CultureInfo.InvariantCulture);
}
