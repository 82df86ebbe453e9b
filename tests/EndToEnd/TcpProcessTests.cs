using System.Diagnostics;
using System.Globalization;
using System.Net;
using Megatron.Compute.Distributed;
using Megatron.Testing;

namespace Megatron.EndToEnd.Tests;

/// <summary>The TCP backend between real processes: the suite of every backend, the bits of threads, a killed peer, throughput.</summary>
[Collection<Alone>]
public sealed class TcpProcessTests(ITestOutputHelper output)
{
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(90);

    [Theory]
    [InlineData(2)]
    [InlineData(4)]
    public async Task Contract_Processes_PassTheSuiteOfEveryBackend(int size)
    {
        var (codes, lines) = await RunAll("contract", size);
        Assert.All(codes, code => Assert.Equal(0, code));
        var passed = Assert.Single(lines.Select(rank => Assert.Single(rank)).Distinct());
        output.WriteLine(passed);
        Assert.InRange(int.Parse(passed.Split(' ')[0], CultureInfo.InvariantCulture), 44, int.MaxValue); // fewer: some were not found
    }

    [Theory]
    [InlineData(2)]
    [InlineData(4)]
    public async Task Sequence_Processes_GiveTheBitsOfThreadsAndOfLoopback(int size)
    {
        var (codes, lines) = await RunAll("sequence", size);
        Assert.All(codes, code => Assert.Equal(0, code));
        var hash = Assert.Single(lines.Select(rank => Assert.Single(rank)).Distinct());
        Assert.Equal(64, hash.Length);

        var store = new InProcessRendezvousStore();
        Assert.All(HashesOfThreads(size, rank => new TcpWorld(store, new TcpWorldOptions
        {
            Attempt = "threads/1", Rank = rank, Address = IPAddress.Loopback, Timeout = patience, JoinTimeout = patience,
        })), threads => Assert.Equal(hash, threads));
        var loopback = new LoopbackWorld(patience);
        Assert.All(HashesOfThreads(size, _ => loopback), threads => Assert.Equal(hash, threads));
    }

    [Fact]
    public async Task AllReduce_PeerIsKilled_OthersFaultAndNameIt()
    {
        using var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 16);
        var ranks = Enumerable.Range(0, 4).Select(rank => Start("forever", rank, 4, server.EndPoint.Port)).ToArray();
        using var limit = new CancellationTokenSource(patience);
        try
        {
            foreach (var rank in ranks) Assert.Equal("running", await rank.StandardOutput.ReadLineAsync(limit.Token));
            ranks[2].Kill(); // SIGKILL in the middle of a collective
            var clock = Stopwatch.StartNew();
            foreach (var rank in (int[])[0, 1, 3]) Assert.StartsWith("fault 2 ", await ranks[rank].StandardOutput.ReadLineAsync(limit.Token));
            var elapsed = clock.Elapsed;
            foreach (var rank in (int[])[0, 1, 3])
            {
                await ranks[rank].WaitForExitAsync(limit.Token);
                Assert.Equal(RankProcess.FaultExitCode, ranks[rank].ExitCode);
            }
            output.WriteLine(FormattableString.Invariant($"three processes named the killed one {elapsed.TotalMilliseconds:F0} ms after the kill"));
            Assert.True(elapsed < TimeSpan.FromSeconds(1), $"took {elapsed}");
        }
        finally
        {
            Array.ForEach(ranks, End);
        }
    }

    /// <summary>Nobody waits for the peer when it dies; the operation that comes afterwards ends at once.</summary>
    [Fact]
    public async Task AllReduce_PeerWasKilledWhileAllWereIdle_FaultsAtOnceAndNamesIt()
    {
        using var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 16);
        var ranks = Enumerable.Range(0, 3).Select(rank => Start("idle", rank, 3, server.EndPoint.Port)).ToArray();
        using var limit = new CancellationTokenSource(patience);
        try
        {
            foreach (var rank in ranks) Assert.Equal("idle", await rank.StandardOutput.ReadLineAsync(limit.Token));
            ranks[1].Kill();
            await ranks[1].WaitForExitAsync(limit.Token);
            foreach (var rank in (int[])[0, 2])
            {
                var clock = Stopwatch.StartNew();
                await ranks[rank].StandardInput.WriteLineAsync("go");
                await ranks[rank].StandardInput.FlushAsync(limit.Token);
                Assert.StartsWith("fault 1 Group world: rank 1 (global 1) is lost", await ranks[rank].StandardOutput.ReadLineAsync(limit.Token));
                output.WriteLine(FormattableString.Invariant($"rank {rank} named the killed one {clock.Elapsed.TotalMilliseconds:F0} ms after it was told to reduce"));
                Assert.True(clock.Elapsed < TimeSpan.FromSeconds(1), $"took {clock.Elapsed}");
                await ranks[rank].WaitForExitAsync(limit.Token);
                Assert.Equal(RankProcess.FaultExitCode, ranks[rank].ExitCode);
            }
        }
        finally
        {
            Array.ForEach(ranks, End);
        }
    }

    [Fact]
    public async Task AllReduce_64MiBBetweenTwoProcesses_IsRightAndItsSpeedIsPrinted()
    {
        var (codes, lines) = await RunAll("throughput", 2);
        Assert.All(codes, code => Assert.Equal(0, code));
        foreach (var rank in lines)
        {
            Assert.StartsWith("right ", Assert.Single(rank));
            output.WriteLine($"64 MiB fp32 all-reduce, 2 processes: {rank[0]}");
        }
    }

    private static string[] HashesOfThreads(int size, Func<int, IProcessGroupFactory> open)
    {
        var hashes = new string[size];
        RankThreads.Run(size, rank =>
        {
            using var leaks = LeakCheck.Start();
            var factory = open(rank);
            using (var group = factory.Create("world", rank, [.. Enumerable.Range(0, size)])) hashes[rank] = RankProcess.HashOfSequence(group);
            (factory as IDisposable)?.Dispose();
        }, limit: patience);
        return hashes;
    }

    private static async Task<(int[] Codes, string[][] Lines)> RunAll(string program, int size)
    {
        using var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 16);
        var ranks = Enumerable.Range(0, size).Select(rank => Start(program, rank, size, server.EndPoint.Port)).ToArray();
        using var limit = new CancellationTokenSource(patience);
        try
        {
            var texts = await Task.WhenAll(ranks.Select(rank => rank.StandardOutput.ReadToEndAsync(limit.Token)));
            foreach (var rank in ranks) await rank.WaitForExitAsync(limit.Token);
            return ([.. ranks.Select(rank => rank.ExitCode)], [.. texts.Select(text => text.Split('\n', StringSplitOptions.RemoveEmptyEntries))]);
        }
        finally
        {
            Array.ForEach(ranks, End);
        }
    }

    private static Process Start(string program, int rank, int size, int port)
    {
        var assembly = typeof(TcpProcessTests).Assembly.Location;
        var runsUnderDotnet = Path.GetFileNameWithoutExtension(Environment.ProcessPath) == "dotnet";
        var start = new ProcessStartInfo(runsUnderDotnet ? Environment.ProcessPath ?? "dotnet" : Path.ChangeExtension(assembly, null))
        {
            RedirectStandardInput = true, RedirectStandardOutput = true,
        };
        if (runsUnderDotnet) start.ArgumentList.Add(assembly);
        start.Environment[RankProcess.Variable] = FormattableString.Invariant($"{program} {rank} {size} {port}");
        return Process.Start(start) ?? throw new InvalidOperationException("The process did not start.");
    }

    private static void End(Process process)
    {
        if (!process.HasExited) process.Kill();
        process.Dispose();
    }
}
