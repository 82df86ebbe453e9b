using Megatron.Compute.Data;

namespace Megatron.Compute.Inference;

/// <summary>
/// Chooses the next tokens of one sequence from logits in host memory: repetition penalty, then the likeliest token, or temperature, top-k
/// and top-p in this order and one draw. The draws depend on the seed and the sequence's number only, not on its neighbours in a batch.
/// </summary>
public sealed class Sampler
{
    private readonly SamplingOptions options;
    private readonly DataRandom random;
    private readonly HashSet<int> present = [];

    /// <param name="seed">Seed of the run.</param>
    /// <param name="sequence">Number of the sequence among all that are generated.</param>
    public Sampler(SamplingOptions options, int seed, long sequence) =>
        (this.options, random) = (options, new DataRandom((ulong)(uint)seed, "generation", sequence));

    /// <summary>Tells which tokens stand in the sequence, for the repetition penalty.</summary>
    public void Observe(ReadOnlySpan<int> ids)
    {
        foreach (var id in ids) present.Add(id);
    }

    /// <summary>The next token. Among equal logits the lowest id comes first.</summary>
    /// <param name="logits">[V]; overwritten.</param>
    public int Next(Span<float> logits)
    {
        if (options.RepetitionPenalty != 1) Penalize(logits);
        return options.Temperature == 0 ? Likeliest(logits) : Draw(logits);
    }

    private void Penalize(Span<float> logits)
    {
        var penalty = (float)options.RepetitionPenalty;
        foreach (var id in present) logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
    }

    private static int Likeliest(ReadOnlySpan<float> logits)
    {
        var best = 0;
        for (var i = 1; i < logits.Length; i++)
            if (logits[i] > logits[best]) best = i;
        return best;
    }

    private int Draw(ReadOnlySpan<float> logits)
    {
        var count = options.TopK > 0 ? Math.Min(options.TopK, logits.Length) : logits.Length;
        var ids = LikeliestIds(logits, count);
        var weights = new double[count];
        var total = 0.0;
        for (var i = 0; i < count; i++) total += weights[i] = Math.Exp((logits[ids[i]] - (double)logits[ids[0]]) / options.Temperature);

        var kept = 0;
        var keptWeight = 0.0;
        while (kept < count && (kept == 0 || keptWeight < options.TopP * total)) keptWeight += weights[kept++];
        var target = NextUnit() * keptWeight;
        for (var i = 0; i < kept; i++)
        {
            target -= weights[i];
            if (target < 0) return ids[i];
        }
        return ids[kept - 1];
    }

    /// <summary>The ids of the <paramref name="count"/> largest logits, largest first, equal ones by id.</summary>
    private static int[] LikeliestIds(ReadOnlySpan<float> logits, int count)
    {
        var kept = new PriorityQueue<int, (float Logit, int MinusId)>(count + 1); // the least likely of the kept ones is in front
        for (var i = 0; i < logits.Length; i++)
        {
            if (kept.Count < count) kept.Enqueue(i, (logits[i], -i));
            else kept.EnqueueDequeue(i, (logits[i], -i));
        }
        var ids = new int[count];
        for (var i = count - 1; i >= 0; i--) ids[i] = kept.Dequeue();
        return ids;
    }

    /// <summary>A number in [0, 1) with 53 random bits.</summary>
    private double NextUnit() => (random.NextUInt64() >> 11) * (1.0 / (1UL << 53));
}
