using System.Runtime.ExceptionServices;
using Megatron.Compute.Configuration;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data;

/// <summary>One usable row of one data set.</summary>
internal readonly record struct RowRef(int File, int Row);

/// <summary>
/// Encodes each chosen row once, however often it is repeated, on <c>dataset_num_proc</c> threads; results do not depend on their number.
/// </summary>
internal sealed class RowEncoding(IReadOnlyList<DatasetFile> files, SampleEncoder encoder, TrainingConfig config, ChatTemplate template)
{
    private const double MaxDeletedShare = 0.5;

    private readonly Dictionary<RowRef, EncodedSample[]> _samples = [];

    /// <summary>Encodes the distinct rows among <paramref name="rows"/>.</summary>
    /// <exception cref="ConfigException">DATA022 (token outside the model's vocabulary), DATA013 (more than half of the rows deleted), and
    /// with <c>strict</c> the first row that does not fit the template.</exception>
    public void EncodeAll(RowRef[] rows, List<string> report)
    {
        var distinct = rows.Distinct().OrderBy(row => row.File).ThenBy(row => row.Row).ToArray();
        var encoded = new EncodedRow[distinct.Length];
        var numLosingRounds = 0;
        try
        {
            Parallel.For(0, distinct.Length, new ParallelOptions { MaxDegreeOfParallelism = Math.Max(1, config.DatasetNumProc) }, i =>
            {
                var conversation = files[distinct[i].File].Read(distinct[i].Row);
                if (template.Separator is null && conversation.Messages.Count(message => message.Role == ChatMessage.User) > 1)
                    Interlocked.Increment(ref numLosingRounds);
                encoded[i] = encoder.Encode(conversation, files[distinct[i].File].Position(distinct[i].Row));
            });
        }
        catch (AggregateException e)
        {
            // One cause is enough: the same file change or fault may have struck several threads.
            ExceptionDispatchInfo.Throw(e.InnerExceptions[0]);
        }
        if (numLosingRounds > 0)
            report.Add($"{numLosingRounds} rows have several rounds, of which template {template.Name} uses only the last");
        Collect(distinct, encoded, report);
    }

    /// <summary>Samples of the rows in their order, each row as often as it stands there.</summary>
    public List<EncodedSample> SamplesOf(RowRef[] rows)
    {
        var samples = new List<EncodedSample>(rows.Length);
        foreach (var row in rows) samples.AddRange(_samples[row]);
        return samples;
    }

    private void Collect(RowRef[] distinct, EncodedRow[] encoded, List<string> report)
    {
        var misfits = new DroppedRows("template " + template.Name, config.Strict);
        var deleted = new DroppedRows("encoding", strict: false);
        var numCut = 0;
        for (var i = 0; i < distinct.Length; i++)
        {
            var row = encoded[i];
            if (row.Fatal is not null) throw new ConfigException([row.Fatal]);
            if (row.Problem is not null) misfits.Add(row.Problem);
            if (row.Deleted is not null) deleted.Add(row.Deleted);
            if (row.WasCut) numCut++;
            _samples.Add(distinct[i], row.Samples);
        }
        misfits.Check(distinct.Length);
        foreach (var line in misfits.Lines(distinct.Length)) report.Add(line);
        foreach (var line in deleted.Lines(distinct.Length)) report.Add(line);
        if (numCut > 0)
            report.Add($"{numCut} of {distinct.Length} rows are longer than max_length = {config.MaxLength} and were cut ({config.TruncationStrategy})");
        if (deleted.Count <= distinct.Length * MaxDeletedShare) return;
        var first = deleted.Lines(distinct.Length).First();
        throw new ConfigException("DATA013", $"{deleted.Count} of {distinct.Length} rows would be left out because they are too long or have nothing to " +
            $"learn, more than half (first: {first}); raise max_length, choose another truncation_strategy or check the data.");
    }
}
