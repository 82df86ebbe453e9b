namespace Megatron.Grains.Stages;

/// <summary>A rank that needs much longer than its peers for the same work.</summary>
/// <param name="Factor">Its time over that of its peers.</param>
[GenerateSerializer, Immutable]
public sealed record Straggler([property: Id(0)] int Rank, [property: Id(1)] double Factor);

/// <summary>
/// Names a slow rank among the data-parallel peers of a stage, whose work is alike. What counts is the time in which a rank does not wait for others:
/// the time of the whole step is that of the slowest for all of them. A rank's time is the third smallest of its last 9 steps, so that single slow
/// steps, as a collection of garbage makes them, are no reason: it is named when that is 1.5 times what the median of its peers needs, and no longer
/// when it is less than 1.25 times. Plain state.
/// </summary>
public sealed class StragglerWatch
{
    private const int Window = 9;
    private const int ThirdSmallest = 2;
    private const double NamedAt = 1.5;
    private const double ClearedAt = 1.25;

    private readonly Dictionary<int, (double[] Last, int Count)> ranks = [];
    private int? named;

    /// <summary>Takes a step of all ranks; returns the rank that is named now. A step in which a rank has no time changes nothing.</summary>
    /// <param name="step">Each rank and its time.</param>
    public Straggler? Add(IReadOnlyList<(int Rank, TimeSpan? Time)> step)
    {
        if (step.Count < 2 || step.Any(rank => rank.Time is null))
            return null;
        foreach (var (rank, time) in step)
        {
            var (last, count) = ranks.GetValueOrDefault(rank, (new double[Window], 0));
            last[count % Window] = time.GetValueOrDefault().TotalMilliseconds;
            ranks[rank] = (last, count + 1);
        }
        if (ranks.Values.Any(rank => rank.Count < Window))
            return null;
        var times = ranks.Select(rank => (Rank: rank.Key, Time: rank.Value.Last.Order().ElementAt(ThirdSmallest))).OrderBy(rank => rank.Time).ToList();
        var slowest = times[^1];
        double peers = times[(times.Count - 1) / 2].Time;
        double factor = peers > 0 ? slowest.Time / peers : 1;
        named = factor >= (named == slowest.Rank ? ClearedAt : NamedAt) ? slowest.Rank : null;
        return named is { } rankNow ? new Straggler(rankNow, factor) : null;
    }
}
