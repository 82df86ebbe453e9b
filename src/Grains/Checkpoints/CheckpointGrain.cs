using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Grains.Ranks;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Checkpoints;

/// <inheritdoc cref="ICheckpointGrain"/>
[CollectionAgeLimit(Days = 1)]
internal sealed class CheckpointGrain : Grain, ICheckpointGrain
{
    private readonly ControlClock clock;
    private readonly ILogger<CheckpointGrain> logger;
    private AttemptId current;
    private CheckpointFanIn? fanIn;
    private GrainOutbox<CommitCheckpoint>? commits;
    private CancellationTokenSource? over;

    public CheckpointGrain(ControlClock clock, ILogger<CheckpointGrain> logger)
    {
        this.clock = clock;
        this.logger = logger;
    }

    public Task Begin(AttemptId attempt, int worldSize, string rank0GrainKey)
    {
        if (attempt.Attempt <= current.Attempt)
            return Task.CompletedTask;
        Stop();
        current = attempt;
        fanIn = new CheckpointFanIn(attempt, worldSize);
        // Nobody waits for a command to rank 0, whose silo may be gone: what a rank says after its receipt, that it has lost the others, would wait too.
        var rank0 = GrainFactory.GetGrain<IRankGrain>(rank0GrainKey);
        commits = new GrainOutbox<CommitCheckpoint>(commands => Task.WhenAll(commands.Select(rank0.Post)), clock.Time, logger);
        over = new CancellationTokenSource();
        // Runs beside the turns until the attempt is over; it catches all faults itself.
        _ = commits.RunAsync(over.Token);
        return Task.CompletedTask;
    }

    public Task End(AttemptId attempt)
    {
        if (attempt == current)
            Stop();
        return Task.CompletedTask;
    }

    public Task AddReceipt(CheckpointReceipt receipt)
    {
        var (commit, reason) = fanIn is null ? (null, "the attempt is over") : fanIn.Add(receipt);
        GrainLog.Checkpoint(logger, receipt.Attempt.JobId, receipt.Attempt.Attempt, receipt.SaveId, receipt.Iteration, reason);
        // The ranks say it again when the job has told this activation of the attempt.
        if (current.Attempt < receipt.Attempt.Attempt)
            GrainCalls.Send(GrainFactory.GetGrain<IJobControl>(receipt.Attempt.JobId).OnGrainMoved(receipt.Attempt.Attempt), logger, "ask for the attempt");
        if (commit is not null)
            commits?.Post(commit);
        return Task.CompletedTask;
    }

    public Task MarkCommitted(CheckpointCommitted report)
    {
        if (report.Attempt == current)
            fanIn?.MarkCommitted(report);
        return Task.CompletedTask;
    }

    public override Task OnDeactivateAsync(DeactivationReason reason, CancellationToken cancellationToken)
    {
        Stop();
        return Task.CompletedTask;
    }

    private void Stop()
    {
        fanIn = null;
        over?.Cancel();
        over?.Dispose();
        over = null;
    }
}
