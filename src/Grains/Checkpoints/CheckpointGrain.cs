using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Grains.Ranks;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Checkpoints;

/// <inheritdoc cref="ICheckpointGrain"/>
[CollectionAgeLimit(Days = 1)]
internal sealed class CheckpointGrain : Grain, ICheckpointGrain
{
    private readonly ILogger<CheckpointGrain> logger;
    private AttemptId current;
    private string rank0GrainKey = "";
    private CheckpointFanIn? fanIn;

    public CheckpointGrain(ILogger<CheckpointGrain> logger) => this.logger = logger;

    public Task Begin(AttemptId attempt, int worldSize, string rank0GrainKey)
    {
        if (attempt.Attempt <= current.Attempt)
            return Task.CompletedTask;
        current = attempt;
        this.rank0GrainKey = rank0GrainKey;
        fanIn = new CheckpointFanIn(attempt, worldSize);
        return Task.CompletedTask;
    }

    public Task End(AttemptId attempt)
    {
        if (attempt == current)
            fanIn = null;
        return Task.CompletedTask;
    }

    public async Task AddReceipt(CheckpointReceipt receipt)
    {
        var (commit, reason) = fanIn is null ? (null, "the attempt is over") : fanIn.Add(receipt);
        GrainLog.Checkpoint(logger, receipt.Attempt.JobId, receipt.Attempt.Attempt, receipt.SaveId, receipt.Iteration, reason);
        // The ranks say it again when the job has told this activation of the attempt.
        if (current == default)
            GrainCalls.Send(GrainFactory.GetGrain<IJobControl>(receipt.Attempt.JobId).OnGrainMoved(receipt.Attempt.Attempt), logger, "ask for the attempt");
        if (commit is not null)
            await GrainFactory.GetGrain<IRankGrain>(rank0GrainKey).Post(commit);
    }

    public Task MarkCommitted(CheckpointCommitted report)
    {
        if (report.Attempt == current)
            fanIn?.MarkCommitted(report);
        return Task.CompletedTask;
    }
}
