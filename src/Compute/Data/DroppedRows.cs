using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Sources;

namespace Megatron.Compute.Data;

/// <summary>Rows left out for one reason.</summary>
internal sealed record DropCount(string Code, string Reason, int Count);

/// <summary>What <see cref="DroppedRows"/> knows, as it is stored.</summary>
/// <param name="Counts">Rows by reason.</param>
/// <param name="First">The first of them.</param>
/// <param name="Unreadable">The first unreadable ones.</param>
/// <param name="NumUnreadable">Number of unreadable ones.</param>
internal sealed record DroppedState(IReadOnlyList<DropCount> Counts, IReadOnlyList<RowProblem> First, IReadOnlyList<RowProblem> Unreadable, int NumUnreadable)
{
    /// <summary>No row was left out.</summary>
    public static DroppedState None { get; } = new([], [], [], 0);
}

/// <summary>
/// Rows of one data set that are left out. With <c>strict</c> the first ends the run; else they are counted by reason, the first ten are shown,
/// and a file that seems damaged (more than 1 % of its rows unreadable) ends the run after all.
/// </summary>
internal sealed class DroppedRows
{
    /// <summary>Rows that are shown.</summary>
    public const int NumShown = 10;

    private const int NumErrors = 20;
    private const double MaxUnreadableShare = 0.01;

    private readonly string _path;
    private readonly bool _strict;
    private readonly Dictionary<(string Code, string Reason), int> _counts = [];
    private readonly List<RowProblem> _first = [];
    private readonly List<RowProblem> _unreadable = [];
    private int _numUnreadable;

    /// <param name="path">Name of the data set.</param>
    /// <param name="strict">End the run at the first row.</param>
    public DroppedRows(string path, bool strict) => (_path, _strict) = (path, strict);

    /// <summary>Rows left out so far.</summary>
    public int Count { get; private set; }

    /// <summary>All that is known, to be stored and taken up again with <see cref="AddAll"/>.</summary>
    public DroppedState State =>
        new([.. _counts.Select(pair => new DropCount(pair.Key.Code, pair.Key.Reason, pair.Value))], [.. _first], [.. _unreadable], _numUnreadable);

    /// <summary>Takes up one row.</summary>
    /// <exception cref="ConfigException">The problem itself, with <c>strict</c>.</exception>
    public void Add(RowProblem problem)
    {
        if (_strict) throw new ConfigException([problem.ToError()]);
        AddCount(problem.Code, problem.Reason, 1);
        if (_first.Count < NumShown) _first.Add(problem);
        if (!problem.IsUnreadable) return;
        _numUnreadable++;
        if (_unreadable.Count < NumErrors) _unreadable.Add(problem);
    }

    /// <summary>Takes up rows that were counted before.</summary>
    /// <exception cref="ConfigException">The first of them, with <c>strict</c>.</exception>
    public void AddAll(DroppedState state)
    {
        if (_strict && state.First.Count > 0) throw new ConfigException([state.First[0].ToError()]);
        foreach (var count in state.Counts) AddCount(count.Code, count.Reason, count.Count);
        _first.AddRange(state.First);
        _unreadable.AddRange(state.Unreadable);
        _numUnreadable += state.NumUnreadable;
    }

    /// <summary>Judges the file once all its rows are known.</summary>
    /// <exception cref="ConfigException">More than 1 % of the rows unreadable (the errors, 20 at most), or no usable row (DATA021).</exception>
    public void Check(int numRows)
    {
        if (_numUnreadable > numRows * MaxUnreadableShare)
        {
            var errors = _unreadable.ConvertAll(problem => problem.ToError());
            errors.Add(new ConfigError(errors[0].Code, $"{_path}: {_numUnreadable} of {numRows} rows cannot be read, more than 1 %; correct the file."));
            throw new ConfigException(errors);
        }
        if (Count < numRows) return;
        var all = _first.ConvertAll(problem => problem.ToError());
        all.Add(new ConfigError("DATA021", $"{_path}: none of its {numRows} rows can be used ({Reasons()}); correct the file."));
        throw new ConfigException(all);
    }

    /// <summary>The first ten rows and one summary line; nothing when no row was left out.</summary>
    public IEnumerable<string> Lines(int numRows)
    {
        foreach (var problem in _first.Take(NumShown)) yield return $"row left out: {problem}";
        if (Count > 0) yield return $"{_path}: {Count} of {numRows} rows left out ({Reasons()})";
    }

    private void AddCount(string code, string reason, int count)
    {
        Count += count;
        _counts[(code, reason)] = _counts.GetValueOrDefault((code, reason)) + count;
    }

    private string Reasons() => string.Join(", ", _counts.OrderByDescending(pair => pair.Value).ThenBy(pair => pair.Key.Code, StringComparer.Ordinal)
        .Select(pair => $"{pair.Value} × {pair.Key.Reason} {pair.Key.Code}"));
}
