using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Data.Sources;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data;

/// <summary>One opened data set: which of its rows can be used, and each of them as a conversation on demand.</summary>
internal sealed class DatasetFile : IDisposable
{
    private readonly IRowSource _source;
    private readonly RowParser _parser;
    private readonly List<int> _usable = [];

    private DatasetFile(DatasetSpec spec, IRowSource source, RowParser parser)
    {
        Spec = spec;
        _source = source;
        _parser = parser;
    }

    /// <summary>Path and number of rows asked for.</summary>
    public DatasetSpec Spec { get; }

    /// <summary>Rows that can be used.</summary>
    public int Count => _usable.Count;

    /// <summary>Opens a data set and parses every row once; the text is not kept.</summary>
    /// <exception cref="ConfigException">The file cannot be used at all, or a row is bad and <paramref name="strict"/> is set.</exception>
    public static DatasetFile Open(DatasetSpec spec, RowParser parser, bool strict, ICollection<string> report)
    {
        var file = new DatasetFile(spec, RowSources.Open(spec.Path), parser);
        try
        {
            file.Scan(strict, report);
            return file;
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>Where usable row <paramref name="row"/> stands in its file.</summary>
    public string Position(int row) => _source.Position(_usable[row]);

    /// <summary>Usable row <paramref name="row"/>.</summary>
    /// <exception cref="ConfigException">The file was changed since it was opened.</exception>
    public Conversation Read(int row) =>
        _parser.TryParse(_source, _usable[row], new DataNotices(), out var conversation, out var problem)
            ? conversation
            : throw new ConfigException(problem.Code, $"{problem.Position}: {problem.Detail} The file was changed while it was read.");

    /// <inheritdoc/>
    public void Dispose() => _source.Dispose();

    private void Scan(bool strict, ICollection<string> report)
    {
        var notices = new DataNotices();
        var dropped = new DroppedRows(Spec.Path, strict);
        for (var i = 0; i < _source.Count; i++)
        {
            if (_parser.TryParse(_source, i, notices, out _, out var problem)) _usable.Add(i);
            else dropped.Add(problem);
        }
        dropped.Check(_source.Count);
        foreach (var line in dropped.Lines(_source.Count)) report.Add(line);
        foreach (var line in notices.Lines()) report.Add($"{Spec.Path}: {line}");
    }
}
