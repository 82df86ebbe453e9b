using System.Collections.Concurrent;
using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Training;

namespace Megatron.Compute.Tests.Training;

public sealed class RankWorkerTests
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);

    [Fact]
    public async Task Start_ProgramEnds_ReportsInOrderOnTheRanksThread()
    {
        var threads = new ConcurrentBag<string?>();
        await using var worker = new RankWorker(3, _ => new Program(link =>
        {
            threads.Add(Thread.CurrentThread.Name);
            link.Report(new RankStarted(link.Attempt, link.Rank, 1, 10, 7));
            link.Report(new RankFinished(link.Attempt, link.Rank, 0, true));
        }));
        var reports = Collect(worker);

        worker.Post(Start("job", 1));

        Assert.IsType<RankStarted>(Next(reports));
        Assert.IsType<RankFinished>(Next(reports));
        Assert.Equal("rank-3", Assert.Single(threads));
    }

    [Fact]
    public async Task Start_ProgramThrows_EveryKindBecomesAFaultReportAndTheWorkerGoesOn()
    {
        var failures = new Queue<Exception>([
            new ConfigException("DATA001", "rows.jsonl:3 is not JSON; mend the line."), new RankFaultException("peer 1 was lost", 1), new InvalidOperationException("boom")]);
        await using var worker = new RankWorker(0, _ => new Program(_ => throw failures.Dequeue()));
        var reports = Collect(worker);

        worker.Post(Start("a", 1));
        worker.Post(Start("b", 1));
        worker.Post(Start("c", 1));

        var user = Assert.IsType<RankFaulted>(Next(reports));
        Assert.True(user.IsUserError);
        Assert.StartsWith("DATA001 rows.jsonl:3", user.Message, StringComparison.Ordinal);
        Assert.False(Assert.IsType<RankFaulted>(Next(reports)).IsUserError);
        Assert.Contains("boom", Assert.IsType<RankFaulted>(Next(reports)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Abort_WhileTheProgramWaits_ReleasesItAtOnce()
    {
        using var entered = new ManualResetEventSlim();
        using var released = new ManualResetEventSlim();
        await using var worker = new RankWorker(0, _ => new Program(
            _ =>
            {
                entered.Set();
                if (!released.Wait(Patience)) throw new TimeoutException("nobody aborted");
                throw new RankAbortedException("membership changed");
            },
            _ => released.Set()));
        var reports = Collect(worker);

        worker.Post(Start("job", 1));
        Assert.True(entered.Wait(Patience));
        worker.Post(new AbortRank(new AttemptId("job", 1), "membership changed"));

        Assert.Equal("membership changed", Assert.IsType<RankFaulted>(Next(reports)).Message);
    }

    [Fact]
    public async Task Commands_OfOlderAttempts_AreDroppedAndThoseOfLaterOnesKept()
    {
        using var entered = new ManualResetEventSlim();
        using var proceed = new ManualResetEventSlim();
        var seen = new ConcurrentQueue<RankCommand?>();
        var runs = 0;
        await using var worker = new RankWorker(0, _ => new Program(link =>
        {
            if (Interlocked.Increment(ref runs) == 1)
            {
                entered.Set();
                Assert.True(proceed.Wait(Patience));
                seen.Enqueue(link.TryTake());
                seen.Enqueue(link.TryTake());
            }
            link.Report(new RankFinished(link.Attempt, link.Rank, 0, true));
        }));
        var reports = Collect(worker);

        worker.Post(Start("job", 2));
        Assert.True(entered.Wait(Patience));
        worker.Post(new StopRank(new AttemptId("job", 1), true, "stale"));
        worker.Post(Start("job", 3));
        worker.Post(new StopRank(new AttemptId("job", 2), true, "now"));
        proceed.Set();

        Assert.Equal(2, Assert.IsType<RankFinished>(Next(reports)).Attempt.Attempt);
        Assert.Equal(3, Assert.IsType<RankFinished>(Next(reports)).Attempt.Attempt);
        Assert.Equal(["now", null], seen.Select(command => (command as StopRank)?.Reason));
    }

    [Fact]
    public async Task Start_OfAnAttemptThatWasAbortedBefore_DoesNotRun()
    {
        var started = new ConcurrentQueue<int>();
        await using var worker = new RankWorker(0, start => new Program(link =>
        {
            started.Enqueue(start.Attempt.Attempt);
            link.Report(new RankFinished(link.Attempt, link.Rank, 0, true));
        }));
        var reports = Collect(worker);

        worker.Post(new AbortRank(new AttemptId("job", 1), "too late"));
        worker.Post(Start("job", 1));
        worker.Post(Start("job", 2));

        Next(reports);
        Assert.Equal([2], started);
    }

    private static StartRank Start(string job, int attempt) => new(new AttemptId(job, attempt), "{}", 0, 1, 0, "local:test", null);

    private static BlockingCollection<RankReport> Collect(RankWorker worker)
    {
        var reports = new BlockingCollection<RankReport>();
        worker.Subscribe(reports.Add);
        return reports;
    }

    private static RankReport Next(BlockingCollection<RankReport> reports) =>
        reports.TryTake(out var report, Patience) ? report : throw new TimeoutException("no report");

    private sealed class Program(Action<RankLink> run, Action<string>? abort = null) : IRankProgram
    {
        public void Run(RankLink link) => run(link);
        public void Abort(string reason) => abort?.Invoke(reason);
        public void Dispose() { }
    }
}
