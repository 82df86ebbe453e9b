using System.Diagnostics;
using System.Globalization;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Silo;

namespace Megatron.Testing.ControlPlane;

/// <summary>What the control plane costs while a job trains.</summary>
/// <param name="ProcessorTimePerStep">Of all threads of the process: grains, their messages, and the test's own ranks and watcher.</param>
/// <param name="ReportTime">What a rank's thread spends on telling a step, mean over the ranks; the slowest of them in the median step.</param>
/// <param name="Delay">From the last rank's report to the event at a watcher, median.</param>
public sealed record ReportCost(int NumRanks, TimeSpan ProcessorTimePerStep, TimeSpan ReportTime, TimeSpan Delay)
{
    /// <summary>Share of one core at so many steps a second.</summary>
    public double CoreShareAt(double stepsPerSecond) => ProcessorTimePerStep.TotalSeconds * stepsPerSecond;

    /// <inheritdoc/>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture,
        $"{NumRanks} ranks: {ProcessorTimePerStep.TotalMilliseconds:F2} ms of processor time a step, {100 * CoreShareAt(10):F2} % of a core at 10 steps/s; {ReportTime.TotalMilliseconds:F3} ms a step on a rank's thread; event after {Delay.TotalMilliseconds:F2} ms");
}

/// <summary>Fake ranks on a real silo that report step after step; the next one begins when a watcher has seen the one before, so that nothing is batched over steps.</summary>
public static class ReportLoad
{
    private const int NumWarmupSteps = 150;

    /// <summary>Runs the job and measures.</summary>
    public static async Task<ReportCost> MeasureAsync(int numRanks, int numSteps, CancellationToken cancellation)
    {
        var workers = Enumerable.Range(0, numRanks).Select(index => new FakeRankWorker(index)).ToList();
        await using var silo = await SiloHost.StartAsync(SiloOptions.ForLocalJob(numRanks, null), index => workers[index], cancellation);
        var job = silo.Grains.GetGrain<IJobGrain>("cost");
        await job.Submit(new JobSpec { JobId = "cost", Name = "cost", ConfigJson = "{}", WorldSize = numRanks, OutputFolder = "/nowhere" });
        var starts = await Task.WhenAll(workers.Select(worker => worker.NextAsync<StartRank>()));
        foreach (var (worker, start) in workers.Zip(starts))
            worker.Report(FakeRankWorker.Started(start));
        await using var events = job.Watch(1, cancellation).GetAsyncEnumerator(cancellation);
        using var process = Process.GetCurrentProcess();
        var (reportTimes, delays, began) = (new List<TimeSpan>(), new List<TimeSpan>(), TimeSpan.Zero);
        for (int step = 1; step <= NumWarmupSteps + numSteps; step++)
        {
            if (step == NumWarmupSteps + 1)
            {
                process.Refresh();
                began = process.TotalProcessorTime;
            }
            long start = Stopwatch.GetTimestamp();
            for (int rank = 0; rank < numRanks; rank++)
                workers[rank].Report(FakeRankWorker.Step(starts[rank], step) with { ComputeTime = TimeSpan.FromMilliseconds(90), PipelineWait = TimeSpan.Zero });
            long told = Stopwatch.GetTimestamp();
            while (await events.MoveNextAsync() && (events.Current is not JobStepDone done || done.Step.Iteration < step)) { }
            if (step <= NumWarmupSteps)
                continue;
            reportTimes.Add(Stopwatch.GetElapsedTime(start, told) / numRanks);
            delays.Add(Stopwatch.GetElapsedTime(told));
        }
        process.Refresh();
        var spent = process.TotalProcessorTime - began;
        foreach (var (worker, start) in workers.Zip(starts))
            worker.Report(new RankFinished(start.Attempt, start.Rank, NumWarmupSteps + numSteps, Completed: true));
        while (await events.MoveNextAsync()) { }
        return new ReportCost(numRanks, spent / numSteps, Median(reportTimes), Median(delays));
    }

    private static TimeSpan Median(List<TimeSpan> times) => times.Order().ElementAt(times.Count / 2);
}
