using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Grains.Ranks;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Stages;

/// <inheritdoc cref="IPipelineStageGrain"/>
[CollectionAgeLimit(Days = 1)]
internal sealed class PipelineStageGrain : Grain, IPipelineStageGrain
{
    private readonly ControlClock clock;
    private readonly ILogger<PipelineStageGrain> logger;
    private readonly Dictionary<int, long> lastSequences = [];
    private StageLaunch? launch;
    private ReportAggregator? aggregator;
    private GrainOutbox<StageMessage>? outbox;
    private CancellationTokenSource? ended;
    private long lastSent;
    private Guid incarnation;

    public PipelineStageGrain(ControlClock clock, ILogger<PipelineStageGrain> logger)
    {
        this.clock = clock;
        this.logger = logger;
    }

    public Task Start(StageLaunch next)
    {
        if (launch is { } current && next.Attempt.Attempt < current.Attempt.Attempt)
            return Task.CompletedTask;
        if (launch?.Attempt != next.Attempt)
            Open(next);
        return Task.WhenAll(next.Ranks.Select(rank =>
            GrainFactory.GetGrain<IRankGrain>(rank.RankGrainKey).Start(rank.Command with { Work = next.Work }, rank.Silo, this.GetPrimaryKeyString())));
    }

    public Task Attach(StageLaunch next)
    {
        if (launch is { } current && next.Attempt.Attempt < current.Attempt.Attempt)
            return Task.CompletedTask;
        if (launch?.Attempt != next.Attempt)
            Open(next);
        foreach (var rank in next.Ranks)
            GrainCalls.Send(GrainFactory.GetGrain<IRankGrain>(rank.RankGrainKey).Repeat(next.Attempt), logger, "repeat the reports");
        return Task.CompletedTask;
    }

    public Task Broadcast(RankCommand command)
    {
        if (launch is not { } current || current.Attempt != command.Attempt)
            return Task.CompletedTask;
        if (command is not AbortRank abort)
            return Task.WhenAll(current.Ranks.Select(rank => GrainFactory.GetGrain<IRankGrain>(rank.RankGrainKey).Post(command)));
        // One of the ranks is often gone, and nobody waits for it: the job sees who has ended.
        foreach (var rank in current.Ranks)
            GrainCalls.Send(Abort(current, rank, abort), logger, "abort a rank");
        return Task.CompletedTask;
    }

    public Task OnReports(AttemptId attempt, int rank, List<SequencedReport> reports)
    {
        if (launch is null || launch.Attempt.Attempt < attempt.Attempt)
        {
            GrainCalls.Send(GrainFactory.GetGrain<IJobControl>(attempt.JobId).OnGrainMoved(attempt.Attempt), logger, "ask for the launch");
            throw new StageUnknownException($"stage {this.GetPrimaryKeyString()} does not know attempt {attempt.Attempt} yet");
        }
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
        incarnation = Guid.NewGuid();
        aggregator = new ReportAggregator(next.Stage, next.Ranks.Length);
        var job = GrainFactory.GetGrain<IJobReports>(next.Attempt.JobId);
        outbox = new GrainOutbox<StageMessage>(messages => job.OnStage([.. messages]), clock.Time, logger);
        // Runs beside the turns until the next attempt; it catches all faults itself.
        _ = outbox.RunAsync(ended.Token);
    }

    // A rank that never began will not say that it has ended: a start may have been lost with the silo of the grain that passed it on.
    private async Task Abort(StageLaunch current, RankStart rank, AbortRank abort)
    {
        bool isHere = await GrainFactory.GetGrain<IRankGrain>(rank.RankGrainKey).Post(abort);
        if (!isHere && launch == current)
            Take(current, new RankFaulted(abort.Attempt, rank.Command.Rank, "the rank was aborted before it began", IsUserError: false, ""));
    }

    private void Take(StageLaunch current, RankReport report)
    {
        switch (report)
        {
            case StepReport step:
                if (aggregator?.Add(step) is { } stageStep)
                    Send(new StageMessage(current.Attempt, current.Stage, incarnation, ++lastSent) { Step = stageStep });
                break;
            case EvaluationReport evaluation:
                if (aggregator?.Add(evaluation) is { } stageEvaluation)
                    Send(new StageMessage(current.Attempt, current.Stage, incarnation, ++lastSent) { Evaluation = stageEvaluation });
                break;
            default:
                Send(new StageMessage(current.Attempt, current.Stage, incarnation, ++lastSent) { Report = report });
                break;
        }
    }

    private void Send(StageMessage message) => outbox?.Post(message);
}
