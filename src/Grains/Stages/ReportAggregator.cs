using Megatron.Compute.Training;

namespace Megatron.Grains.Stages;

/// <summary>
/// Joins the reports of a stage's ranks into one per step and evaluation. Plain state without a grain, so that its rules are tested alone.
/// Ranks may be apart by some steps; a step is complete when every rank has reported it.
/// </summary>
public sealed class ReportAggregator
{
    private readonly int stage;
    private readonly int numRanks;
    private readonly SortedDictionary<long, Dictionary<int, StepReport>> steps = [];
    private readonly Dictionary<(long Iteration, bool Final), Dictionary<int, EvaluationReport>> evaluations = [];
    private readonly StragglerWatch stragglers = new();
    private long lastCompleteStep;

    public ReportAggregator(int stage, int numRanks)
    {
        this.stage = stage;
        this.numRanks = numRanks;
    }

    /// <summary>Takes one rank's step; returns the stage's step when this was the last rank to report it. A repetition changes nothing.</summary>
    public StageStepReport? Add(StepReport report)
    {
        if (report.Iteration <= lastCompleteStep)
            return null;
        if (!steps.TryGetValue(report.Iteration, out var ranks))
            steps[report.Iteration] = ranks = [];
        ranks[report.Rank] = report;
        if (ranks.Count < numRanks)
            return null;
        lastCompleteStep = report.Iteration;
        steps.Remove(report.Iteration);
        return Join(ranks.Values);
    }

    /// <summary>Takes one rank's evaluation; returns the stage's when this was the last rank to report it.</summary>
    public StageEvaluation? Add(EvaluationReport report)
    {
        var key = (report.Iteration, report.Final);
        if (!evaluations.TryGetValue(key, out var ranks))
            evaluations[key] = ranks = [];
        ranks[report.Rank] = report;
        if (ranks.Count < numRanks)
            return null;
        evaluations.Remove(key);
        var inOrder = ranks.Values.OrderBy(rank => rank.Rank).ToList();
        return new StageEvaluation(report.Iteration, inOrder.Sum(rank => rank.LossSum), inOrder.Sum(rank => rank.TokenCount), report.Final);
    }

    // Sums run in rank order: the same reports give the same bits whatever their order of arrival.
    private StageStepReport Join(IEnumerable<StepReport> reports)
    {
        var ranks = reports.OrderBy(rank => rank.Rank).ToList();
        var first = ranks[0];
        var slowest = ranks.MaxBy(rank => rank.StepTime) ?? first;
        return new StageStepReport
        {
            Stage = stage,
            Iteration = first.Iteration,
            LossSum = ranks.Sum(rank => rank.LossSum),
            TokenCount = ranks.Sum(rank => rank.TokenCount),
            LossBits = first.LossBits,
            GradNorm = first.GradNorm,
            LearningRate = first.LearningRate,
            LossScale = first.LossScale,
            Skipped = first.Skipped,
            BatchHash = first.BatchHash,
            BatchHashesAgree = ranks.TrueForAll(rank => rank.BatchHash == first.BatchHash),
            StepTime = slowest.StepTime,
            SlowestRank = slowest.Rank,
            FloatingPointOperations = ranks.Sum(rank => rank.FloatingPointOperations),
            LoadBalancingLoss = ranks.Average(rank => rank.LoadBalancingLoss),
            ZLoss = ranks.Average(rank => rank.ZLoss),
            ParamsNorm = first.ParamsNorm,
            NumRanks = numRanks,
            ComputeTime = Mean(ranks, rank => rank.ComputeTime),
            BubbleFraction = Mean(ranks, rank => rank.PipelineWait) / slowest.StepTime,
            Straggler = stragglers.Add([.. ranks.Select(rank => (rank.Rank, rank.ComputeTime))]),
            TokensPerExpert = SumOfExperts(ranks),
        };
    }

    private static TimeSpan? Mean(List<StepReport> ranks, Func<StepReport, TimeSpan?> select) =>
        ranks.Average(rank => (double?)select(rank)?.Ticks) is { } ticks ? TimeSpan.FromTicks((long)ticks) : null;

    private static long[]? SumOfExperts(List<StepReport> ranks)
    {
        if (ranks[0].TokensPerExpert is not { } first)
            return null;
        var sum = new long[first.Count];
        foreach (var rank in ranks)
        {
            for (int expert = 0; expert < sum.Length; expert++)
                sum[expert] += rank.TokensPerExpert?[expert] ?? 0;
        }
        return sum;
    }
}
