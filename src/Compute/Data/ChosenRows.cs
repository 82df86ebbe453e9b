using System.Globalization;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Prepared;

namespace Megatron.Compute.Data;

/// <summary>What the chosen rows of the prepared sources amount to: their samples, and a report of those that gave none.</summary>
/// <param name="sources">Prepared sources.</param>
/// <param name="config">Data options.</param>
/// <param name="templateName">For messages.</param>
internal sealed class ChosenRows(IReadOnlyList<PreparedSource> sources, TrainingConfig config, string templateName)
{
    private const double MaxDeletedShare = 0.5;

    /// <summary>Samples of the rows in their order, each row as often as it stands there.</summary>
    public SampleRef[] SamplesOf(RowRef[] rows)
    {
        var samples = new List<SampleRef>(rows.Length);
        foreach (var row in rows)
        {
            var range = sources[row.Source].SamplesOf(row.Row);
            for (var sample = range.Start.Value; sample < range.End.Value; sample++) samples.Add(new SampleRef(row.Source, sample));
        }
        return [.. samples];
    }

    /// <summary>Counts the distinct rows that gave no sample, were cut or lose rounds.</summary>
    /// <exception cref="ConfigException">No row fits the template (DATA021), more than half of the rows deleted (DATA013), and with <c>strict</c> the
    /// first row that does not fit the template.</exception>
    public void Report(IEnumerable<RowRef> rows, List<string> report)
    {
        var (numRows, numCut, numLosing) = (0, 0, 0);
        var misfits = new Dictionary<FateReason, int>();
        var deleted = new Dictionary<FateReason, int>();
        foreach (var row in Distinct(rows))
        {
            var (facts, entry) = (sources[row.Source].Facts, sources[row.Source].Row(row.Row));
            numRows++;
            if (entry.Flags.HasFlag(RowFlags.WasCut)) numCut++;
            if (entry.Flags.HasFlag(RowFlags.LosesRounds)) numLosing++;
            if (entry.Fate == 0) continue;
            var reason = facts.Reasons[entry.Fate - 1];
            var counts = reason.IsMisfit ? misfits : deleted;
            counts[reason] = counts.GetValueOrDefault(reason) + 1;
        }
        if (numLosing > 0) report.Add($"{numLosing} rows have several rounds, of which template {templateName} uses only the last");
        var unfit = Dropped("template " + templateName, misfits, facts => facts.FirstMisfits, config.Strict);
        unfit.Check(numRows);
        report.AddRange(unfit.Lines(numRows));
        var left = Dropped("encoding", deleted, facts => facts.FirstDeleted, strict: false);
        report.AddRange(left.Lines(numRows));
        if (numCut > 0)
            report.Add(string.Create(CultureInfo.InvariantCulture, $"{numCut} of {numRows} rows are longer than max_length = {config.MaxLength} and were cut ({config.TruncationStrategy})"));
        if (left.Count <= numRows * MaxDeletedShare) return;
        throw new ConfigException("DATA013", $"{left.Count} of {numRows} rows would be left out because they are too long or have nothing to " +
            $"learn, more than half (first: {left.Lines(numRows).First()}); raise max_length, choose another truncation_strategy or check the data.");
    }

    private DroppedRows Dropped(string name, Dictionary<FateReason, int> counts, Func<PreparedFacts, IReadOnlyList<Sources.RowProblem>> first, bool strict)
    {
        var dropped = new DroppedRows(name, strict);
        if (counts.Count == 0) return dropped;
        Sources.RowProblem[] shown = [.. sources.SelectMany(source => first(source.Facts)).Take(DroppedRows.NumShown)];
        dropped.AddAll(new DroppedState([.. counts.Select(pair => new DropCount(pair.Key.Code, pair.Key.Reason, pair.Value))], shown, [], NumUnreadable: 0));
        return dropped;
    }

    private IEnumerable<RowRef> Distinct(IEnumerable<RowRef> rows)
    {
        var seen = sources.Select(source => new System.Collections.BitArray(source.Facts.NumRows)).ToArray();
        foreach (var row in rows)
        {
            if (seen[row.Source][row.Row]) continue;
            seen[row.Source][row.Row] = true;
            yield return row;
        }
    }
}
