using Megatron.Compute.Configuration;

namespace Megatron.Compute.Data;

/// <summary>
/// Which rows of one data set train and which validate: a pure function of the numbers and the seed. Rows are numbers 0 … numRows − 1 and may
/// repeat where more are asked for than there are.
/// </summary>
/// <param name="Train">Training rows.</param>
/// <param name="Validation">Validation rows; none of them is a training row.</param>
internal sealed record RowSplit(int[] Train, int[] Validation)
{
    /// <summary>
    /// Validation rows are taken first, <c>max(1, ⌊min(rows, requested) · ratio⌋)</c> of them, then the training rows from what is left: requested
    /// less the validation rows; fewer than there are as a random subset, more as whole copies and a random rest. Without shuffling the first
    /// rows train and the ones after them validate.
    /// </summary>
    /// <param name="name">Name of the data set for messages.</param>
    /// <param name="numRows">Usable rows, at least 1.</param>
    /// <param name="requested">The count after <c>#</c>, or null for all.</param>
    /// <param name="ratio">Share of validation rows in [0, 1].</param>
    /// <param name="shuffle"><c>dataset_shuffle</c>.</param>
    /// <param name="random">The stream of this data set.</param>
    /// <exception cref="ConfigException">DATA010 (ratio), DATA021 (too few rows to split).</exception>
    public static RowSplit Make(string name, int numRows, int? requested, double ratio, bool shuffle, DataRandom random)
    {
        if (!(ratio is >= 0 and <= 1))
            throw new ConfigException("DATA010", FormattableString.Invariant($"split_dataset_ratio = {ratio} is not a share; choose a number from 0 to 1."));
        var order = shuffle ? random.Permutation(numRows) : [.. Enumerable.Range(0, numRows)];
        var wanted = requested ?? numRows;
        if (ratio == 0) return new RowSplit(Sample(order, wanted, shuffle, random), []);
        if (ratio == 1) return new RowSplit([], Sample(order, wanted, shuffle, random));

        var available = Math.Min(numRows, wanted);
        var numValidation = Math.Max(1, (int)(available * ratio));
        if (numValidation >= available)
            throw new ConfigException("DATA021", FormattableString.Invariant($"{name} gives {available} row(s), too few to split off {numValidation} for ") +
                "validation; set split_dataset_ratio 0 or add rows.");
        int[] validation, rest;
        if (shuffle) (validation, rest) = (order[..numValidation], order[numValidation..]);
        else (validation, rest) = (order[(available - numValidation)..available], [.. order[..(available - numValidation)], .. order[available..]]);
        return new RowSplit(Sample(rest, wanted - numValidation, shuffle, random), validation);
    }

    private static int[] Sample(int[] rows, int wanted, bool shuffle, DataRandom random)
    {
        if (wanted <= rows.Length) return rows[..wanted];
        var taken = new int[wanted];
        var copied = wanted / rows.Length * rows.Length;
        for (var i = 0; i < copied; i++) taken[i] = rows[i % rows.Length];
        var order = shuffle ? random.Permutation(rows.Length) : [.. Enumerable.Range(0, rows.Length)];
        for (var i = copied; i < wanted; i++) taken[i] = rows[order[i - copied]];
        return taken;
    }
}
