namespace Megatron.Compute.Data;

/// <summary>One row of one opened source.</summary>
internal readonly record struct RowRef(int Source, int Row);

/// <summary>How the rows of several data sets become one list: a pure function of the lists and the seed.</summary>
internal static class RowMix
{
    /// <summary>One after another.</summary>
    public static RowRef[] Concatenate(IReadOnlyList<RowRef[]> sets) => [.. sets.SelectMany(rows => rows)];

    /// <summary>
    /// Each next row comes from a set drawn by the probabilities, in the set's order. The mix ends when the first set is used up, or, with
    /// <paramref name="untilAll"/>, when each has been used up once; a set that is used up then begins again.
    /// </summary>
    /// <param name="sets">Rows of each set, none empty.</param>
    /// <param name="probabilities">One for each set; their sum is 1.</param>
    /// <param name="untilAll"><c>all_exhausted</c>.</param>
    /// <param name="random">The stream of the mix.</param>
    public static RowRef[] Interleave(IReadOnlyList<RowRef[]> sets, IReadOnlyList<double> probabilities, bool untilAll, DataRandom random)
    {
        var mixed = new List<RowRef>();
        var next = new int[sets.Count];
        var isUsedUp = new bool[sets.Count];
        // A set that is never drawn can never be used up and is not waited for.
        for (var i = 0; i < sets.Count; i++) isUsedUp[i] = untilAll && probabilities[i] == 0;
        while (untilAll ? isUsedUp.Contains(false) : !isUsedUp.Contains(true))
        {
            var set = Draw(probabilities, random);
            mixed.Add(sets[set][next[set]]);
            if (++next[set] < sets[set].Length) continue;
            next[set] = 0;
            isUsedUp[set] = true;
        }
        return [.. mixed];
    }

    /// <summary>A set by the probabilities; rounding never picks one of probability 0.</summary>
    public static int Draw(IReadOnlyList<double> probabilities, DataRandom random)
    {
        var point = random.NextDouble();
        var last = 0;
        for (var i = 0; i < probabilities.Count; i++)
        {
            if (probabilities[i] == 0) continue;
            last = i;
            if (point < probabilities[i]) return i;
            point -= probabilities[i];
        }
        return last;
    }
}
