using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Grains.Ranks;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Stages;

/// <inheritdoc cref="IPipelineStageGrain"/>
[CollectionAgeLimit(Days = 1)]
internal sealed class PipelineStageGrain : Grain, IPipelineStageGrain
{
    private readonly TimeProvider time;
    private readonly ILogger<PipelineStageGrain> logger;
    private readonly Dictionary<int, long> lastSequences = [];
    private StageLaunch? launch;
    private ReportAggregator? aggregator;
    private GrainOutbox<StageMessage>? outbox;
    private CancellationTokenSource? ended;
    private long lastSent;

    public PipelineStageGrain(TimeProvider time, ILogger<PipelineStageGrain> logger)
    {
        this.time = time;
        this.logger = logger;
    }

    public Task Start(StageLaunch next)
    {
        if (launch is { } current && next.Attempt.Attempt < current.Attempt.Attempt)
            return Task.CompletedTask;
        if (launch?.Attempt != next.Attempt)
            Open(next);
        return Task.WhenAll(next.Ranks.Select(rank =>
            GrainFactory.GetGrain<IRankGrain>(rank.RankGrainKey).Start(rank.Command, this.GetPrimaryKeyString())));
    }

    public Task Broadcast(RankCommand command)
    {
        if (launch is not { } current || current.Attempt != command.Attempt)
            return Task.CompletedTask;
        return Task.WhenAll(current.Ranks.Select(rank => GrainFactory.GetGrain<IRankGrain>(rank.RankGrainKey).Post(command)));
    }

    public Task OnReports(AttemptId attempt, int rank, List<SequencedReport> reports)
    {
        if (launch is not { } current || current.Attempt != attempt)
            return Task.CompletedTask;
        foreach (var item in reports)
        {
            if (item.Sequence <= lastSequences.GetValueOrDefault(rank))
                continue;
            lastSequences[rank] = item.Sequence;
            Take(current, item.Report);
        }
        return Task.CompletedTask;
    }

    public override Task OnDeactivateAsync(DeactivationReason reason, CancellationToken cancellationToken)
    {
        ended?.Cancel();
        ended?.Dispose();
        return Task.CompletedTask;
    }

    private void Open(StageLaunch next)
    {
        ended?.Cancel();
        ended?.Dispose();
        ended = new CancellationTokenSource();
        launch = next;
        lastSequences.Clear();
        lastSent = 0;
        aggregator = new ReportAggregator(next.Stage, next.Ranks.Length);
        var job = GrainFactory.GetGrain<IJobReports>(next.Attempt.JobId);
        outbox = new GrainOutbox<StageMessage>(messages => job.OnStage([.. messages]), time, logger);
        // Runs beside the turns until the next attempt; it catches all faults itself.
        _ = outbox.RunAsync(ended.Token);
    }

    private void Take(StageLaunch current, RankReport report)
    {
        switch (report)
        {
            case StepReport step:
                if (aggregator?.Add(step) is { } stageStep)
                    Send(new StageMessage(current.Attempt, current.Stage, ++lastSent) { Step = stageStep });
                break;
            case EvaluationReport evaluation:
                if (aggregator?.Add(evaluation) is { } stageEvaluation)
                    Send(new StageMessage(current.Attempt, current.Stage, ++lastSent) { Evaluation = stageEvaluation });
                break;
            default:
                Send(new StageMessage(current.Attempt, current.Stage, ++lastSent) { Report = report });
                break;
        }
    }

    private void Send(StageMessage message) => outbox?.Post(message);
}
