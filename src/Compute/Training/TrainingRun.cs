using System.Collections.Concurrent;
using System.Diagnostics;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Native;

namespace Megatron.Compute.Training;

/// <summary>
/// One attempt of a training job on one rank: sets up, steps, evaluates, saves, and answers commands between steps. All of it runs on the
/// rank's thread; only <see cref="Abort"/> comes from another.
/// </summary>
public sealed class TrainingRun : IRankProgram
{
    private readonly StartRank start;
    private readonly RankEnvironment environment;
    private readonly CancellationTokenSource aborted = new();
    private volatile string? abortReason;
    private readonly ConcurrentQueue<IProcessGroupFactory> backends = [];
    private volatile ParallelState? parallel;
    private volatile IDisposable? peers;
    private string? lost;
    private bool hasLeft;
    private bool isDisposed;
    private StopRank? stop;
    private bool isBusy;
    private TimeSpan timeWaited;
    private TimeSpan timeOfSteps;
    private int numSteps;
    private MemoryGrowth? growth; // where it can do harm

    public TrainingRun(StartRank start, RankEnvironment environment) => (this.start, this.environment) = (start, environment);

    /// <inheritdoc/>
    public void Run(RankLink link)
    {
        RankFinished finished;
        try
        {
            finished = RunToItsEnd(link);
        }
        catch (RankFaultException fault)
        {
            lost = fault.Message;
            throw;
        }
        Leave(); // before the last report: a silo whose ranks have ended may stop, and with it the rendezvous through which they say goodbye
        link.Report(finished);
    }

    /// <inheritdoc/>
    public void Abort(string reason)
    {
        abortReason = reason;
        foreach (var backend in backends) backend.Abort(reason);
        lock (aborted)
            if (!isDisposed) aborted.Cancel();
        parallel?.Abort(reason);
    }

    /// <summary>
    /// Leaves the process groups, if that is not done: after the report of a fault, so that the control plane hears of the first one before those that follow
    /// from it.
    /// </summary>
    public void Dispose()
    {
        if (lost is { } reason) Abort(reason); // whom one group has lost the others would wait for in vain
        Leave();
        lock (aborted)
        {
            isDisposed = true;
            aborted.Dispose();
        }
    }

    private void Leave()
    {
        if (hasLeft) return;
        hasLeft = true;
        peers?.Dispose();
        parallel?.Dispose();
    }

    private RankFinished RunToItsEnd(RankLink link)
    {
        using var rank = Build(link);
        if (abortReason is { } reason) throw new RankAbortedException(reason);
        Announce(rank, link);
        var completed = Train(rank, link);
        rank.Snapshots?.Complete();
        TellAboutData(rank, link);
        return new RankFinished(link.Attempt, link.Rank, rank.Progress.Iteration, completed);
    }

    private RankSetup Build(RankLink link)
    {
        try
        {
            return RankSetup.Build(start, environment, link, new GroupSink(Reach, opened => parallel = opened, kept => peers = kept), aborted.Token);
        }
        catch (OperationCanceledException) when (abortReason is { } reason)
        {
            throw new RankAbortedException(reason);
        }
    }

    // From here on an abort reaches this backend; one that came just before is carried out here.
    private void Reach(IProcessGroupFactory opened)
    {
        backends.Enqueue(opened);
        if (abortReason is { } reason) opened.Abort(reason);
    }

    private static void Announce(RankSetup rank, RankLink link)
    {
        var numParameters = rank.Model.Parameters.Where(parameter => !parameter.Traits.IsSharedDuplicate).Sum(parameter => parameter.NumElements);
        link.Report(new RankStarted(link.Attempt, link.Rank, rank.Progress.Iteration + 1, numParameters, rank.TrainSource.PlanHash));
        if (link.Rank != 0) return;
        var folder = rank.Config.Save ?? throw new InvalidOperationException("The run has no folder.");
        ArgsFile.Write(folder, rank.Config);
        rank.Data.WriteValidationSplit(Path.Combine(folder, "val_dataset.jsonl"));
        foreach (var line in rank.Data.Report) link.Notice(line);
        if (rank.Config.LogicalDataShards / rank.Parallel.DataParallel.Size is > 1 and var numShards)
            link.Notice(FormattableString.Invariant(
                $"logical_data_shards: {numShards} gradient accumulators on each rank, {(numShards - 1) * 4.0 * rank.Model.Parameters.Sum(parameter => parameter.NumElements) / (1 << 20):F0} MiB more than one"));
        if (rank.Data.TrainSamples.Count > 0) link.Notice(SamplePrinter.Print(rank.Data.TrainSamples[0], rank.Tokenizer));
        link.Report(new TrainingPlanned(link.Attempt, link.Rank, rank.Data.LastIteration, rank.Config.LogInterval, rank.Config.GlobalBatchSize));
    }

    /// <returns>True when the last iteration was reached, false after a stop.</returns>
    private bool Train(RankSetup rank, RankLink link)
    {
        var config = rank.Config;
        var last = rank.Data.LastIteration;
        if (config.AsyncSave) rank.Saver.Rehearse(rank, link);
        rank.Snapshots?.Prepare(rank);
        if (environment.HostsSeveralRanks && rank.Device.type == TorchSharp.DeviceType.CUDA) growth = new MemoryGrowth(CudaDevices.UsedBytes);
        while (rank.Progress.Iteration < last)
        {
            var decision = DecideOnStop(rank, link);
            if (decision != StopDecision.GoOn)
            {
                if (decision == StopDecision.SaveAndStop) SaveOnce(rank, link, isLast: true);
                else CompleteSave(rank, link);
                return false;
            }
            if (isBusy) Busy(link, null);
            Step(rank, link);
            var iteration = rank.Progress.Iteration;
            if (iteration % config.EvalInterval == 0 && iteration < last) Evaluate(rank, link, isFinal: false);
            if (iteration % config.SaveInterval == 0) SaveOnce(rank, link, isLast: iteration == last);
        }
        SaveOnce(rank, link, isLast: true);
        if (rank.Progress.Iteration != rank.Progress.SavedIteration)
            throw new RankFaultException($"The last checkpoint (iteration {rank.Progress.Iteration}) could not be saved; free some space and continue with --resume.");
        Evaluate(rank, link, isFinal: true);
        return true;
    }

    private void Step(RankSetup rank, RankLink link)
    {
        var startTime = Stopwatch.GetTimestamp();
        var (blocked, blockedByPipeline) = (BlockedTime(rank), rank.Parallel.PipelineParallel.BlockedTime);
        var iteration = rank.Progress.Iteration + 1;
        var batch = rank.TrainSource.Get(iteration - 1);
        timeWaited += Stopwatch.GetElapsedTime(startTime);
        var learningRate = rank.Schedule.At(iteration);
        rank.Parallel.IsWarmingUp = numSteps++ < ParallelState.WarmupSteps;
        var metrics = rank.Trainer.TrainStep(batch, learningRate);
        rank.Parallel.IsWarmingUp = true; // what comes between steps may need more
        rank.Progress = rank.Progress.After(batch);
        rank.Snapshots?.AfterStep(rank, link);
        var stepTime = Stopwatch.GetElapsedTime(startTime);
        link.Report(new StepReport(
            link.Attempt, link.Rank, iteration, metrics.LossSum, metrics.TokenCount, BitConverter.SingleToInt32Bits((float)metrics.Loss),
            metrics.Optimizer.GradNorm, learningRate, metrics.Optimizer.LossScale, metrics.Optimizer.IsSkipped, batch.Hash,
            stepTime)
        {
            FloatingPointOperations = rank.Trainer.ReportsLoss ? ModelFlops.Of(rank.ModelConfig, batch) / rank.Parallel.ContextParallel.Size : 0,
            LoadBalancingLoss = metrics.LoadBalancingLoss,
            ZLoss = metrics.ZLoss,
            ParamsNorm = rank.Config.LogParamsNorm ? rank.Trainer.Optimizer.ComputeParamsNorm() : null,
            ComputeTime = stepTime - (BlockedTime(rank) - blocked),
            PipelineWait = rank.Parallel.PipelineParallel.BlockedTime - blockedByPipeline,
            TokensPerExpert = iteration % rank.Config.LogInterval == 0 ? rank.Trainer.CountTokensPerExpert() : null,
        });
        timeOfSteps += Stopwatch.GetElapsedTime(startTime);
        if (numSteps == ParallelState.WarmupSteps) EndWarmup(rank);
        if (growth?.AfterStep(numSteps) is { } warning) link.Notice(warning, RankNoticeLevel.Warning);
    }

    // All ranks together: from here on some run ahead, and none may still be taking what it needs.
    private void EndWarmup(RankSetup rank)
    {
        environment.ReserveMemory(rank.Device);
        rank.Parallel.World.Barrier();
    }

    private static TimeSpan BlockedTime(RankSetup rank) => rank.Parallel.BlockedTime + (rank.Snapshots?.BlockedTime ?? TimeSpan.Zero);

    private void TellAboutData(RankSetup rank, RankLink link)
    {
        var dropped = rank.StopReading();
        if (link.Rank != 0) return;
        foreach (var line in dropped) link.Notice(line);
        if (timeOfSteps > TimeSpan.Zero)
            link.Notice(FormattableString.Invariant($"waited for data: {timeWaited.TotalSeconds:F3} s, {100 * (timeWaited / timeOfSteps):F2} % of the time of the steps"));
    }

    private void Evaluate(RankSetup rank, RankLink link, bool isFinal)
    {
        if (rank.ValidationSource is not { } source || rank.Data.EvalIters == 0) return;
        Busy(link, "the evaluation");
        var (lossSum, tokenCount) = (0.0, 0.0);
        for (var i = 0L; i < rank.Data.EvalIters; i++)
        {
            var (batchLoss, batchTokens) = rank.Trainer.Evaluate(source.Get(i));
            lossSum += batchLoss;
            tokenCount += batchTokens;
        }
        if (rank.Model.HasHead) link.Report(new EvaluationReport(link.Attempt, link.Rank, rank.Progress.Iteration, lossSum, tokenCount, isFinal));
    }

    /// <param name="isLast">Nothing follows that could hide the writing: the save ends before this returns.</param>
    private void SaveOnce(RankSetup rank, RankLink link, bool isLast)
    {
        if (rank.Progress.Iteration == rank.Saver.PendingIteration) CompleteSave(rank, link);
        if (rank.Progress.Iteration == rank.Progress.SavedIteration || rank.Progress.Iteration == 0) return;
        Busy(link, "the checkpoint");
        Take(rank, rank.Saver.Save(rank, link, wait: isLast || !rank.Config.AsyncSave));
    }

    private void CompleteSave(RankSetup rank, RankLink link)
    {
        Busy(link, "the checkpoint");
        Take(rank, rank.Saver.Complete(rank, link));
    }

    // What follows takes longer than a step, and who watches the steps must not take it for a fault; null: steps go on.
    private void Busy(RankLink link, string? activity)
    {
        isBusy = activity is not null;
        if (link.Rank == 0) link.Report(new RankBusy(link.Attempt, link.Rank, activity));
    }

    private void Take(RankSetup rank, SaveOutcome outcome)
    {
        stop ??= outcome.Stop;
        if (outcome.CommittedIteration is { } saved) rank.Progress = rank.Progress with { SavedIteration = saved };
    }

    /// <summary>
    /// A stop may reach the ranks at different steps, and a step or a save is entered by all or none (style rule 22): rank 0's inbox decides,
    /// the others only empty theirs.
    /// </summary>
    private StopDecision DecideOnStop(RankSetup rank, RankLink link)
    {
        while (link.TryTake() is { } command)
        {
            if (command is StopRank asked) stop ??= asked;
            if (command is CommitCheckpoint commit) rank.Saver.Take(commit, link);
        }
        rank.Saver.Advance(link);
        var own = stop is null ? StopDecision.GoOn : stop.SaveCheckpoint ? StopDecision.SaveAndStop : StopDecision.Stop;
        return (StopDecision)HostValues.FromFirst(rank.Parallel.World, rank.Device, (long)own);
    }

    private enum StopDecision
    {
        GoOn,
        Stop,
        SaveAndStop,
    }
}

/// <summary>Where a run stands.</summary>
/// <param name="Iteration">Optimizer steps done, skipped ones included.</param>
/// <param name="ConsumedSamples">Samples of all global batches done.</param>
/// <param name="SavedIteration">Iteration of the newest checkpoint of this attempt, or the one it was loaded from.</param>
public sealed record RunProgress(long Iteration, long ConsumedSamples, long SavedIteration)
{
    /// <summary>Where a stream of data goes on; null for planned data.</summary>
    public string? StreamCursor { get; init; }

    /// <summary>A run that has done nothing.</summary>
    public static RunProgress Beginning { get; } = new(0, 0, -1);

    /// <summary>The progress after one more global batch.</summary>
    public RunProgress After(GlobalBatch batch) =>
        this with { Iteration = Iteration + 1, ConsumedSamples = ConsumedSamples + batch.NumSamplesGlobal, StreamCursor = batch.NextCursor };
}
