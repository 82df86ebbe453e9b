using Megatron.Compute.Training;

namespace Megatron.Grains.Wire;

[GenerateSerializer]
internal struct RankStartedSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public int Rank;
    [Id(2)] public long FirstIteration;
    [Id(3)] public long NumParameters;
    [Id(4)] public ulong DataPlanHash;
}

[RegisterConverter]
internal sealed class RankStartedConverter : IConverter<RankStarted, RankStartedSurrogate>
{
    public RankStarted ConvertFromSurrogate(in RankStartedSurrogate s) => new(s.Attempt, s.Rank, s.FirstIteration, s.NumParameters, s.DataPlanHash);

    public RankStartedSurrogate ConvertToSurrogate(in RankStarted v) => new()
    {
        Attempt = v.Attempt,
        Rank = v.Rank,
        FirstIteration = v.FirstIteration,
        NumParameters = v.NumParameters,
        DataPlanHash = v.DataPlanHash,
    };
}

[GenerateSerializer]
internal struct TrainingPlannedSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public int Rank;
    [Id(2)] public long TrainIterations;
    [Id(3)] public int LogInterval;
    [Id(4)] public int GlobalBatchSize;
}

[RegisterConverter]
internal sealed class TrainingPlannedConverter : IConverter<TrainingPlanned, TrainingPlannedSurrogate>
{
    public TrainingPlanned ConvertFromSurrogate(in TrainingPlannedSurrogate s) =>
        new(s.Attempt, s.Rank, s.TrainIterations, s.LogInterval, s.GlobalBatchSize);

    public TrainingPlannedSurrogate ConvertToSurrogate(in TrainingPlanned v) => new()
    {
        Attempt = v.Attempt,
        Rank = v.Rank,
        TrainIterations = v.TrainIterations,
        LogInterval = v.LogInterval,
        GlobalBatchSize = v.GlobalBatchSize,
    };
}

[GenerateSerializer]
internal struct StepReportSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public int Rank;
    [Id(2)] public long Iteration;
    [Id(3)] public double LossSum;
    [Id(4)] public double TokenCount;
    [Id(5)] public int LossBits;
    [Id(6)] public double GradNorm;
    [Id(7)] public double LearningRate;
    [Id(8)] public double LossScale;
    [Id(9)] public bool Skipped;
    [Id(10)] public ulong BatchHash;
    [Id(11)] public TimeSpan StepTime;
    [Id(12)] public double FloatingPointOperations;
    [Id(13)] public double? LoadBalancingLoss;
    [Id(14)] public double? ZLoss;
    [Id(15)] public double? ParamsNorm;
    [Id(16)] public TimeSpan? ComputeTime;
    [Id(17)] public TimeSpan? PipelineWait;
    [Id(18)] public IReadOnlyList<long>? TokensPerExpert;
}

[RegisterConverter]
internal sealed class StepReportConverter : IConverter<StepReport, StepReportSurrogate>
{
    public StepReport ConvertFromSurrogate(in StepReportSurrogate s) =>
        new(s.Attempt, s.Rank, s.Iteration, s.LossSum, s.TokenCount, s.LossBits, s.GradNorm, s.LearningRate, s.LossScale, s.Skipped, s.BatchHash, s.StepTime)
        {
            FloatingPointOperations = s.FloatingPointOperations,
            LoadBalancingLoss = s.LoadBalancingLoss,
            ZLoss = s.ZLoss,
            ParamsNorm = s.ParamsNorm,
            ComputeTime = s.ComputeTime,
            PipelineWait = s.PipelineWait,
            TokensPerExpert = s.TokensPerExpert,
        };

    public StepReportSurrogate ConvertToSurrogate(in StepReport v) => new()
    {
        Attempt = v.Attempt,
        Rank = v.Rank,
        Iteration = v.Iteration,
        LossSum = v.LossSum,
        TokenCount = v.TokenCount,
        LossBits = v.LossBits,
        GradNorm = v.GradNorm,
        LearningRate = v.LearningRate,
        LossScale = v.LossScale,
        Skipped = v.Skipped,
        BatchHash = v.BatchHash,
        StepTime = v.StepTime,
        FloatingPointOperations = v.FloatingPointOperations,
        LoadBalancingLoss = v.LoadBalancingLoss,
        ZLoss = v.ZLoss,
        ParamsNorm = v.ParamsNorm,
        ComputeTime = v.ComputeTime,
        PipelineWait = v.PipelineWait,
        TokensPerExpert = v.TokensPerExpert,
    };
}

[GenerateSerializer]
internal struct EvaluationReportSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public int Rank;
    [Id(2)] public long Iteration;
    [Id(3)] public double LossSum;
    [Id(4)] public double TokenCount;
    [Id(5)] public bool Final;
}

[RegisterConverter]
internal sealed class EvaluationReportConverter : IConverter<EvaluationReport, EvaluationReportSurrogate>
{
    public EvaluationReport ConvertFromSurrogate(in EvaluationReportSurrogate s) =>
        new(s.Attempt, s.Rank, s.Iteration, s.LossSum, s.TokenCount, s.Final);

    public EvaluationReportSurrogate ConvertToSurrogate(in EvaluationReport v) => new()
    {
        Attempt = v.Attempt,
        Rank = v.Rank,
        Iteration = v.Iteration,
        LossSum = v.LossSum,
        TokenCount = v.TokenCount,
        Final = v.Final,
    };
}

[GenerateSerializer]
internal struct RankBusySurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public int Rank;
    [Id(2)] public string? Activity;
}

[RegisterConverter]
internal sealed class RankBusyConverter : IConverter<RankBusy, RankBusySurrogate>
{
    public RankBusy ConvertFromSurrogate(in RankBusySurrogate s) => new(s.Attempt, s.Rank, s.Activity);

    public RankBusySurrogate ConvertToSurrogate(in RankBusy v) => new() { Attempt = v.Attempt, Rank = v.Rank, Activity = v.Activity };
}

[GenerateSerializer]
internal struct RankNoticeSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public int Rank;
    [Id(2)] public RankNoticeLevel Level;
    [Id(3)] public string Text;
}

[RegisterConverter]
internal sealed class RankNoticeConverter : IConverter<RankNotice, RankNoticeSurrogate>
{
    public RankNotice ConvertFromSurrogate(in RankNoticeSurrogate s) => new(s.Attempt, s.Rank, s.Level, s.Text);

    public RankNoticeSurrogate ConvertToSurrogate(in RankNotice v) => new() { Attempt = v.Attempt, Rank = v.Rank, Level = v.Level, Text = v.Text };
}

[GenerateSerializer]
internal struct RankFinishedSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public int Rank;
    [Id(2)] public long LastIteration;
    [Id(3)] public bool Completed;
}

[RegisterConverter]
internal sealed class RankFinishedConverter : IConverter<RankFinished, RankFinishedSurrogate>
{
    public RankFinished ConvertFromSurrogate(in RankFinishedSurrogate s) => new(s.Attempt, s.Rank, s.LastIteration, s.Completed);

    public RankFinishedSurrogate ConvertToSurrogate(in RankFinished v) =>
        new() { Attempt = v.Attempt, Rank = v.Rank, LastIteration = v.LastIteration, Completed = v.Completed };
}

[GenerateSerializer]
internal struct RankFaultedSurrogate
{
    [Id(0)] public AttemptId Attempt;
    [Id(1)] public int Rank;
    [Id(2)] public string Message;
    [Id(3)] public bool IsUserError;
    [Id(4)] public string Detail;
}

[RegisterConverter]
internal sealed class RankFaultedConverter : IConverter<RankFaulted, RankFaultedSurrogate>
{
    public RankFaulted ConvertFromSurrogate(in RankFaultedSurrogate s) => new(s.Attempt, s.Rank, s.Message, s.IsUserError, s.Detail);

    public RankFaultedSurrogate ConvertToSurrogate(in RankFaulted v) =>
        new() { Attempt = v.Attempt, Rank = v.Rank, Message = v.Message, IsUserError = v.IsUserError, Detail = v.Detail };
}
